//! Nodes in the form that the clouds' own clusters give them.

use super::*;
use serde_json::{Value, json};

fn of(provider: Provider, region: &str) -> Identity {
    Identity {
        name: "c".to_owned(),
        uid: "u".to_owned(),
        provider,
        region: region.to_owned(),
        selector: BTreeMap::new(),
    }
}

fn object(value: Value) -> Node {
    serde_json::from_value(value).unwrap()
}

fn info(arch: &str) -> Value {
    json!({ "architecture": arch, "bootID": "3c1f6d1e-0000-4000-8000-000000000000",
        "containerRuntimeVersion": "containerd://1.7.27", "kernelVersion": "6.1.134",
        "kubeProxyVersion": "v1.32.3", "kubeletVersion": "v1.32.3-eks-473151a",
        "machineID": "m", "operatingSystem": "linux", "osImage": "Amazon Linux 2023", "systemUUID": "s" })
}

fn ready(status: &str) -> Value {
    json!([
        { "type": "MemoryPressure", "status": "False" },
        { "type": "Ready", "status": status, "reason": "KubeletReady", "message": "kubelet is posting ready status" },
    ])
}

/// A managed node group of EKS with one T4, paid as spot; GPU feature discovery runs.
fn eks() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "ip-192-168-61-12.us-east-1.compute.internal", "labels": {
            "beta.kubernetes.io/arch": "amd64",
            "beta.kubernetes.io/instance-type": "g4dn.xlarge",
            "eks.amazonaws.com/capacityType": "SPOT",
            "eks.amazonaws.com/nodegroup": "gpu-spot",
            "eks.amazonaws.com/nodegroup-image": "ami-0d3c8b7a1e0000000",
            "failure-domain.beta.kubernetes.io/region": "us-east-1",
            "k8s.io/cloud-provider-aws": "2c6b1f2a9c5d0000000000000000abcd",
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/hostname": "ip-192-168-61-12.us-east-1.compute.internal",
            "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "g4dn.xlarge",
            "topology.ebs.csi.aws.com/zone": "us-east-1c",
            "topology.k8s.aws/zone-id": "use1-az3",
            "topology.kubernetes.io/region": "us-east-1",
            "topology.kubernetes.io/zone": "us-east-1c",
            "nvidia.com/gpu.count": "1", "nvidia.com/gpu.memory": "15360",
            "nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.replicas": "1",
            "nvidia.com/gpu.sharing-strategy": "none", "nvidia.com/mig.capable": "false",
        } },
        "spec": { "providerID": "aws:///us-east-1c/i-0f0e0d0c0b0a09080",
            "taints": [{ "key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule" },
                { "key": "node.kubernetes.io/not-ready", "effect": "NoExecute" }] },
        "status": {
            "allocatable": { "cpu": "3920m", "ephemeral-storage": "18242267924", "hugepages-1Gi": "0",
                "hugepages-2Mi": "0", "memory": "15080172Ki", "nvidia.com/gpu": "1", "pods": "29" },
            "capacity": { "cpu": "4", "ephemeral-storage": "20893676Ki", "hugepages-1Gi": "0",
                "hugepages-2Mi": "0", "memory": "16069356Ki", "nvidia.com/gpu": "1", "pods": "29" },
            "conditions": ready("True"), "nodeInfo": info("amd64") },
    })
}

/// A spot node of GKE with an L4 and no feature discovery.
fn gke() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "gke-prod-l4-spot-5f0a9b1c-x7kq", "labels": {
            "cloud.google.com/gke-accelerator": "nvidia-l4",
            "cloud.google.com/gke-gpu": "true",
            "cloud.google.com/gke-nodepool": "l4-spot",
            "cloud.google.com/gke-os-distribution": "cos",
            "cloud.google.com/gke-provisioning": "spot",
            "cloud.google.com/gke-spot": "true",
            "cloud.google.com/machine-family": "g2",
            "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": "gke-prod-l4-spot-5f0a9b1c-x7kq",
            "node.kubernetes.io/instance-type": "g2-standard-8",
            "topology.gke.io/zone": "europe-west4-a",
            "topology.kubernetes.io/region": "europe-west4",
            "topology.kubernetes.io/zone": "europe-west4-a",
        } },
        "spec": { "providerID": "gce://acme-prod/europe-west4-a/gke-prod-l4-spot-5f0a9b1c-x7kq",
            "taints": [{ "key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule" }] },
        "status": {
            "allocatable": { "cpu": "7910m", "memory": "29141384Ki", "nvidia.com/gpu": "1", "pods": "110" },
            "capacity": { "cpu": "8", "memory": "32880008Ki", "nvidia.com/gpu": "1", "pods": "110" },
            "conditions": ready("True"), "nodeInfo": info("amd64") },
    })
}

/// A regular node of an AKS scale set with four A100.
fn aks() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "aks-a100-31415926-vmss000002", "labels": {
            "agentpool": "a100",
            "kubernetes.azure.com/agentpool": "a100",
            "kubernetes.azure.com/accelerator": "nvidia",
            "kubernetes.azure.com/cluster": "MC_rg_prod_westeurope",
            "kubernetes.azure.com/mode": "user",
            "kubernetes.azure.com/node-image-version": "AKSUbuntu-2204gen2containerd-202502.09.0",
            "kubernetes.azure.com/role": "agent",
            "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": "aks-a100-31415926-vmss000002",
            "node.kubernetes.io/instance-type": "Standard_NC96ads_A100_v4",
            "topology.kubernetes.io/region": "westeurope",
            "topology.kubernetes.io/zone": "westeurope-2",
            "nvidia.com/gpu.product": "NVIDIA-A100-80GB-PCIe", "nvidia.com/gpu.memory": "81920",
        } },
        "spec": { "providerID": "azure:///subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/mc_rg_prod_westeurope/providers/Microsoft.Compute/virtualMachineScaleSets/aks-a100-31415926-vmss/virtualMachines/2" },
        "status": {
            "allocatable": { "cpu": "95560m", "memory": "881Gi", "nvidia.com/gpu": "4", "pods": "250" },
            "capacity": { "cpu": "96", "memory": "886Gi", "nvidia.com/gpu": "4", "pods": "250" },
            "conditions": ready("True"), "nodeInfo": info("amd64") },
    })
}

fn read(value: Value, of: &Identity) -> Machine {
    machine(&object(value), of).unwrap()
}

fn words(facts: &HyperionNodeStatus) -> (String, String, String, String) {
    let provider: Provider = facts.provider.unwrap().into();
    let capacity: CapacityType = facts.capacity_type.unwrap().into();
    (
        provider.to_string(),
        facts.zone.clone(),
        facts.instance_type.clone(),
        capacity.to_string(),
    )
}

#[test]
fn a_node_of_eks() {
    let m = read(eks(), &of(Provider::Aws, "us-east-1"));
    let expected = ("aws", "us-east-1c", "g4dn.xlarge", "spot");
    let (p, z, t, c) = words(&m.facts);
    assert_eq!((p.as_str(), z.as_str(), t.as_str(), c.as_str()), expected);
    assert_eq!(m.reach, Reach::Up);
    assert_eq!((m.facts.arch.as_str(), m.pods), ("amd64", 29));
    assert_eq!(m.has.cpu_millis, 3920);
    assert_eq!(m.has.memory_bytes, 15_080_172 * 1024);
    let gpu = &m.facts.gpus[0];
    assert_eq!((gpu.model.as_str(), gpu.memory_bytes), ("T4", 15_360 << 20));
    let taints: Vec<&str> = m.facts.taints.iter().map(|t| t.key.as_str()).collect();
    assert_eq!(
        taints,
        ["nvidia.com/gpu"],
        "what conditions say is not said twice"
    );
    assert!(!m.facts.cordoned);
}

#[test]
fn a_node_of_gke() {
    let m = read(gke(), &of(Provider::Gcp, "europe-west4"));
    let expected = ("gcp", "europe-west4-a", "g2-standard-8", "spot");
    let (p, z, t, c) = words(&m.facts);
    assert_eq!((p.as_str(), z.as_str(), t.as_str(), c.as_str()), expected);
    let gpu = &m.facts.gpus[0];
    assert_eq!((gpu.model.as_str(), gpu.memory_bytes), ("L4", 24 << 30));
}

#[test]
fn a_node_of_aks() {
    let region = of(Provider::Azure, "westeurope");
    let m = read(aks(), &region);
    let expected = (
        "azure",
        "westeurope-2",
        "Standard_NC96ads_A100_v4",
        "on-demand",
    );
    let (p, z, t, c) = words(&m.facts);
    assert_eq!((p.as_str(), z.as_str(), t.as_str(), c.as_str()), expected);
    assert_eq!(m.facts.gpus.len(), 4);
    let mut spot = aks();
    spot["metadata"]["labels"]["kubernetes.azure.com/scalesetpriority"] = json!("spot");
    assert_eq!(words(&read(spot, &region).facts).3, "spot");
    // The newer label, and a virtual machine of its own.
    let mut spot = aks();
    spot["metadata"]["labels"]["kubernetes.azure.com/priority"] = json!("spot");
    spot["spec"]["providerID"] = json!(
        "azure:///subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/virtualMachines/vm-7"
    );
    assert_eq!(words(&read(spot, &region).facts).3, "spot");
}

#[test]
fn karpenter_has_the_first_word_on_capacity() {
    let region = of(Provider::Aws, "us-east-1");
    for (word, expected) in [
        ("spot", "spot"),
        ("on-demand", "on-demand"),
        ("reserved", "on-demand"),
    ] {
        let mut node = eks();
        node["metadata"]["labels"]["karpenter.sh/capacity-type"] = json!(word);
        assert_eq!(words(&read(node, &region).facts).3, expected);
    }
}

#[test]
fn what_a_node_does_not_say_is_not_guessed() {
    let no = |path: &'static str| {
        move |node: &mut Value| {
            let (at, key) = path.rsplit_once('>').unwrap();
            let held = node.pointer_mut(&at.replace('>', "/")).unwrap();
            held.as_object_mut().unwrap().remove(key);
        }
    };
    let set = |path: &'static str, value: Value| {
        move |node: &mut Value| *node.pointer_mut(path).unwrap() = value.clone()
    };
    let label = |key: &'static str, value: &'static str| {
        move |node: &mut Value| node["metadata"]["labels"][key] = json!(value)
    };
    type Change = Box<dyn Fn(&mut Value)>;
    let cases: Vec<(&str, Vec<Change>)> = vec![
        ("ProviderMissing", vec![Box::new(no(">spec>providerID"))]),
        (
            "ProviderMissing",
            vec![Box::new(set("/spec/providerID", json!("")))],
        ),
        (
            "OtherProvider",
            vec![Box::new(set("/spec/providerID", json!("gce://p/z/n")))],
        ),
        (
            "OtherProvider",
            vec![Box::new(set(
                "/spec/providerID",
                json!("kind://docker/a/b"),
            ))],
        ),
        (
            "OtherProvider",
            vec![Box::new(label("cloud.google.com/gke-nodepool", "x"))],
        ),
        (
            "Fargate",
            vec![Box::new(set(
                "/spec/providerID",
                json!("aws:///us-east-1c/4a5b/fargate-ip-10-0-0-1"),
            ))],
        ),
        (
            "RegionMissing",
            vec![
                Box::new(no(">metadata>labels>topology.kubernetes.io/region")),
                Box::new(no(
                    ">metadata>labels>failure-domain.beta.kubernetes.io/region",
                )),
            ],
        ),
        (
            "OtherRegion",
            vec![Box::new(label(
                "topology.kubernetes.io/region",
                "eu-west-1",
            ))],
        ),
        (
            "InstanceTypeMissing",
            vec![
                Box::new(no(">metadata>labels>node.kubernetes.io/instance-type")),
                Box::new(no(">metadata>labels>beta.kubernetes.io/instance-type")),
            ],
        ),
        (
            "NotLinux",
            vec![Box::new(label("kubernetes.io/os", "windows"))],
        ),
        (
            "ArchitectureMissing",
            vec![
                Box::new(no(">metadata>labels>kubernetes.io/arch")),
                Box::new(no(">status>nodeInfo")),
            ],
        ),
        ("NoCapacity", vec![Box::new(no(">status>allocatable"))]),
        (
            "NoCapacity",
            vec![Box::new(set("/status/allocatable/cpu", json!("0")))],
        ),
        (
            "NoCapacity",
            vec![Box::new(set("/status/allocatable/pods", json!("0")))],
        ),
        (
            "CapacityAbsurd",
            vec![Box::new(set("/status/allocatable/memory", json!("-1")))],
        ),
        (
            "CapacityAbsurd",
            vec![Box::new(set("/status/allocatable/memory", json!("lots")))],
        ),
        (
            "CapacityAbsurd",
            vec![Box::new(set("/status/allocatable/cpu", json!("5")))],
        ),
        (
            "CapacityAbsurd",
            vec![
                Box::new(set("/status/allocatable/cpu", json!("900000"))),
                Box::new(set("/status/capacity/cpu", json!("900000"))),
            ],
        ),
        (
            "CapacityAbsurd",
            vec![Box::new(set(
                "/status/allocatable/nvidia.com~1gpu",
                json!("0.5"),
            ))],
        ),
    ];
    for (reason, changes) in cases {
        let mut node = eks();
        for change in changes {
            change(&mut node);
        }
        let refused = machine(&object(node.clone()), &of(Provider::Aws, "us-east-1"));
        let refused = refused.map_err(|e| e.reason);
        assert_eq!(refused.map(|m| m.facts), Err(reason), "{node}");
    }
}

#[test]
fn a_cluster_of_ones_own_needs_no_labels_and_no_provider() {
    let bare = json!({ "metadata": { "name": "rack-1" },
        "status": { "allocatable": { "cpu": "8", "memory": "32Gi" }, "nodeInfo": info("arm64"),
            "conditions": ready("True") } });
    let m = read(bare.clone(), &of(Provider::Edge, "hall-7"));
    let (provider, _, _, capacity) = words(&m.facts);
    assert_eq!((provider.as_str(), capacity.as_str()), ("edge", "owned"));
    assert_eq!(
        (m.facts.arch.as_str(), m.facts.region.as_str()),
        ("arm64", "hall-7")
    );
    let mut cloud = bare;
    cloud["spec"] = json!({ "providerID": "aws:///us-east-1c/i-1" });
    let refused = machine(&object(cloud), &of(Provider::Edge, "hall-7"));
    assert_eq!(refused.unwrap_err().reason, "OtherProvider");
}

#[test]
fn what_others_take_is_not_left() {
    let m = read(aks(), &of(Provider::Azure, "westeurope"));
    let others = Usage {
        cpu_millis: 90_000,
        memory_bytes: 1 << 50,
        gpus: 3,
        pods: 100,
    };
    let left = m.beside(&others, 5);
    assert_eq!(left.allocatable["cpu"], "5560m");
    assert_eq!(left.allocatable["memory"], "0");
    assert_eq!(left.gpus.len(), 1);
    assert!(!left.cordoned);
    assert!(m.beside(&others, 150).cordoned, "it has 250 Pods");
}

#[test]
fn shared_gpus_are_not_whole() {
    let mut node = eks();
    node["metadata"]["labels"]["nvidia.com/gpu.sharing-strategy"] = json!("time-slicing");
    node["metadata"]["labels"]["nvidia.com/gpu.replicas"] = json!("4");
    node["status"]["allocatable"]["nvidia.com/gpu"] = json!("4");
    node["status"]["capacity"]["nvidia.com/gpu"] = json!("4");
    let m = read(node, &of(Provider::Aws, "us-east-1"));
    assert!(m.facts.gpus.is_empty());
    assert!(m.note.contains("shared"), "{}", m.note);
}

#[test]
fn a_slice_of_a_gpu_is_told_by_its_label() {
    let mut node = aks();
    node["metadata"]["labels"]["nvidia.com/gpu.product"] =
        json!("NVIDIA-A100-80GB-PCIe-MIG-1g.10gb");
    node["metadata"]["labels"]["nvidia.com/gpu.memory"] = json!("9728");
    let m = read(node, &of(Provider::Azure, "westeurope"));
    let gpu = &m.facts.gpus[0];
    let expected = ("A100-80GB-PCIe-MIG-1g.10gb", 9728 << 20);
    assert_eq!((gpu.model.as_str(), gpu.memory_bytes), expected);
}

#[test]
fn kubelets_that_are_not_ready_or_silent_are_told_apart() {
    let reach = |status: &str| {
        let mut node = gke();
        node["status"]["conditions"] = ready(status);
        read(node, &of(Provider::Gcp, "europe-west4")).reach
    };
    assert!(matches!(reach("False"), Reach::Runtime(_)));
    assert!(matches!(reach("Unknown"), Reach::Silent(_)));
    let mut node = gke();
    node["status"]["conditions"] = json!([]);
    let silent = read(node, &of(Provider::Gcp, "europe-west4")).reach;
    assert!(matches!(silent, Reach::Silent(_)));
}

#[test]
fn cordoned_and_going_nodes_take_nothing() {
    let region = of(Provider::Gcp, "europe-west4");
    let mut node = gke();
    node["spec"]["unschedulable"] = json!(true);
    assert!(read(node, &region).facts.cordoned);
    let mut node = gke();
    node["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
    assert!(read(node, &region).facts.cordoned);
}

#[test]
fn a_nodes_own_words_of_ours_do_not_count() {
    let mut node = gke();
    for key in [
        "hyperion.io/provider",
        "hyperion.io/cluster",
        "hyperion.io/site",
    ] {
        node["metadata"]["labels"][key] = json!("aws");
    }
    node["metadata"]["labels"]["hyperion.io/price-per-hour"] = json!("0.25");
    let m = read(node, &of(Provider::Gcp, "europe-west4"));
    assert_eq!(words(&m.facts).0, "gcp");
    assert!(!m.facts.labels.contains_key("hyperion.io/site"));
    assert_eq!(
        m.facts.price_per_hour, 0.25,
        "its owner knows what it costs"
    );
}

#[test]
fn names_are_cut_to_what_objects_may_have() {
    assert_eq!(node_id("eu", "ip-1.internal"), "eu.ip-1.internal");
    let long = "n".repeat(253);
    let (a, b) = (node_id("eu", &long), node_id("us", &long));
    assert!(a.len() <= 253 && a.starts_with("eu.nnn"));
    assert_ne!(a[3..], b[3..]);
}

#[test]
fn selectors_choose_nodes() {
    let mut region = of(Provider::Gcp, "europe-west4");
    assert!(selected(&object(gke()), &region));
    region.selector.insert("pool".to_owned(), "ours".to_owned());
    assert!(!selected(&object(gke()), &region));
}
