// Command karpenter is Karpenter's controller with its own kwok provider: it launches NodeClaims as
// nodes that kwok runs.
//
//	karpenter crds            prints the definitions that it needs
//	karpenter [FLAGS]         runs; see Karpenter's own flags. KUBECONFIG names the cluster. It ends
//	                          with its parent where END_WITH_PARENT is set: the flags are Karpenter's
package main

import (
	"fmt"
	"os"
	"time"

	kwokapis "sigs.k8s.io/karpenter/kwok/apis"
	kwok "sigs.k8s.io/karpenter/kwok/cloudprovider"
	"sigs.k8s.io/karpenter/pkg/apis"
	"sigs.k8s.io/karpenter/pkg/cloudprovider/overlay"
	"sigs.k8s.io/karpenter/pkg/controllers"
	"sigs.k8s.io/karpenter/pkg/controllers/state"
	"sigs.k8s.io/karpenter/pkg/operator"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "crds" {
		if err := printDefinitions(); err != nil {
			fail(err)
		}
		return
	}
	if os.Getenv("END_WITH_PARENT") != "" {
		go endWithParent(os.Getppid())
	}
	ctx, op := operator.NewOperator()
	types, err := kwok.ConstructInstanceTypes(ctx)
	if err != nil {
		fail(fmt.Errorf("instance types: %w", err))
	}
	plain := kwok.NewCloudProvider(ctx, op.GetClient(), types)
	provider := overlay.Decorate(plain, op.GetClient(), op.InstanceTypeStore)
	cluster := state.NewCluster(op.Clock, op.GetClient(), provider)
	all := controllers.NewControllers(
		ctx, op.Manager, op.Clock, op.GetClient(), op.EventRecorder,
		provider, plain, cluster, op.InstanceTypeStore)
	op.WithControllers(ctx, all...).Start(ctx)
}

func printDefinitions() error {
	for _, definition := range [][]byte{
		apis.NodePoolCRD, apis.NodeClaimCRD, apis.NodeOverlayCRD, apis.CapacityBufferCRD, kwokapis.KWOKNodeClassCRD,
	} {
		if _, err := fmt.Printf("---\n%s\n", definition); err != nil {
			return err
		}
	}
	return nil
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "karpenter: %v\n", err)
	os.Exit(1)
}

// endWithParent leaves at once when another process has become the parent.
func endWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(1)
}
