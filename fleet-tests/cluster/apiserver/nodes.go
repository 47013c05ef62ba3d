package main

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/podgc"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
)

// kube-controller-manager's own values.
const (
	nodeMonitorPeriod      = 5 * time.Second
	nodeStartupGrace       = time.Minute
	evictionsPerSecond     = 0.1
	slowEvictionsPerSecond = 0.01
	largeCluster           = 50
	unhealthyZone          = 0.55
	terminatedPods         = 12500
)

// nodeControllers are those that a cluster with nodes needs: one taints nodes that are not ready, and
// says so of nodes that no longer renew their lease; one evicts Pods from tainted nodes; one collects
// the Pods of nodes that are gone. What they give is to be run when the informers are started.
func nodeControllers(
	ctx context.Context, client kubernetes.Interface, shared informers.SharedInformerFactory, grace time.Duration,
) (func(), error) {
	nodes, pods := shared.Core().V1().Nodes(), shared.Core().V1().Pods()
	lifecycle, err := nodelifecycle.NewNodeLifecycleController(
		ctx, shared.Coordination().V1().Leases(), pods, nodes, shared.Apps().V1().DaemonSets(), client,
		nodeMonitorPeriod, nodeStartupGrace, grace,
		evictionsPerSecond, slowEvictionsPerSecond, largeCluster, unhealthyZone)
	if err != nil {
		return nil, err
	}
	eviction, err := tainteviction.New(ctx, client, pods, nodes, "taint-eviction-controller")
	if err != nil {
		return nil, err
	}
	garbage := podgc.NewPodGC(ctx, client, pods, nodes, terminatedPods)
	return func() {
		var running sync.WaitGroup
		running.Go(func() { lifecycle.Run(ctx) })
		running.Go(func() { eviction.Run(ctx) })
		running.Go(func() { garbage.Run(ctx) })
		running.Wait()
	}, nil
}
