package main

import (
	"context"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
)

const (
	// resync is how often everything is looked at again: kube-controller-manager's.
	resync = 5 * time.Minute
	// discover is how often the garbage collector looks for new kinds. Tests make CRDs and expect
	// their objects to be collected; kube-controller-manager takes 30 s.
	discover = 2 * time.Second
	workers  = 4
)

// runControllers empties namespaces that are deleted, collects objects whose owner is gone, and
// makes the service account of each namespace, as kube-controller-manager does. With a grace period
// above zero it also looks after nodes: it is how long one may keep silent.
func runControllers(ctx context.Context, config *rest.Config, nodeGrace time.Duration) error {
	config = rest.CopyConfig(config)
	// No limit on requests.
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := waitReady(ctx, client); err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(client, resync)
	sharedMeta := metadatainformer.NewSharedInformerFactory(objects, resync)
	started := make(chan struct{})

	namespaces := namespace.NewNamespaceController(
		ctx, client, objects, client.Discovery().ServerPreferredNamespacedResources,
		shared.Core().V1().Namespaces(), resync, corev1.FinalizerKubernetes)
	accounts, err := serviceaccount.NewServiceAccountsController(
		klog.FromContext(ctx), shared.Core().V1().ServiceAccounts(), shared.Core().V1().Namespaces(),
		client, serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	garbage, err := garbagecollector.NewGarbageCollector(
		ctx, client, objects, mapper, garbagecollector.DefaultIgnoredResources(),
		informerfactory.NewInformerFactory(shared, sharedMeta), started)
	if err != nil {
		return err
	}
	nodes := func() {}
	if nodeGrace > 0 {
		if nodes, err = nodeControllers(ctx, client, shared, nodeGrace); err != nil {
			return err
		}
	}
	shared.Start(ctx.Done())
	sharedMeta.Start(ctx.Done())
	close(started)

	var running sync.WaitGroup
	running.Go(nodes)
	running.Go(func() { namespaces.Run(ctx, workers) })
	running.Go(func() { accounts.Run(ctx, 1) })
	running.Go(func() { garbage.Run(ctx, workers, resync) })
	running.Go(func() { garbage.Sync(ctx, client.Discovery(), discover) })
	running.Wait()
	return nil
}

func waitReady(ctx context.Context, client *kubernetes.Clientset) error {
	return wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		code := 0
		// Refused while nothing listens yet.
		client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code)
		return code == http.StatusOK, nil
	})
}
