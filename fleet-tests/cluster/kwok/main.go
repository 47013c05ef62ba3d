// Command kwok runs the nodes of a test cluster: kwok's own controller and its own stages. Every
// node is ready, renews its lease and tells its state; every Pod on one runs, and ends when it is
// deleted; there are no machines and no containers.
//
//	kwok --kubeconfig FILE [--lease-seconds N] [--end-with-parent]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/kwok/pkg/client/clientset/versioned"
	"sigs.k8s.io/kwok/pkg/kwok/controllers"
	"sigs.k8s.io/kwok/pkg/utils/client"
)

const (
	// kubelet's.
	leaseSeconds = 40
	// parallel requests of each sort: several times kwok's own, which are for a small cluster.
	parallel = 16
	// podRange is where Pods get their addresses, nodeIP what every node says it has.
	podRange = "10.244.0.1/16"
	nodeIP   = "10.245.0.1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "kwok: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	kubeconfig := flag.String("kubeconfig", "", "of an administrator of the cluster")
	lease := flag.Uint("lease-seconds", leaseSeconds, "how long a node's lease is good; it is renewed after a quarter")
	withParent := flag.Bool("end-with-parent", false, "end when the process that started this has ended")
	flag.Parse()
	if *kubeconfig == "" || *lease == 0 || flag.NArg() != 0 {
		return errors.New("--kubeconfig is needed, --lease-seconds is above zero, and there are no arguments")
	}
	// kwok would look for the API server of the cluster that it runs in.
	if _, err := os.Stat(*kubeconfig); err != nil {
		return err
	}
	if *withParent {
		go endWithParent(os.Getppid())
	}
	config, err := configure(*kubeconfig, *lease)
	if err != nil {
		return err
	}
	if err := waitReady(ctx, config.TypedClient); err != nil {
		return err
	}
	controller, err := controllers.NewController(*config)
	if err != nil {
		return err
	}
	if err := controller.Start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func configure(kubeconfig string, lease uint) (*controllers.Config, error) {
	stages, err := stages()
	if err != nil {
		return nil, err
	}
	id, err := controllers.Identity()
	if err != nil {
		return nil, err
	}
	clients, err := client.NewClientset("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config, err := clients.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	untyped, err := clients.ToDynamicClient()
	if err != nil {
		return nil, err
	}
	mapper, err := clients.ToRESTMapper()
	if err != nil {
		return nil, err
	}
	plain, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, err
	}
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	own, err := versioned.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &controllers.Config{
		Clock:                      clock.RealClock{},
		DynamicClient:              untyped,
		RESTClient:                 plain,
		RESTMapper:                 mapper,
		ImpersonatingDynamicClient: clients.ToImpersonatingDynamicClient(),
		ImpersonatingTypedClient:   clients.ToImpersonatingTypedClient(),
		TypedClient:                typed,
		TypedKwokClient:            own,
		ManageAllNodes:             true,
		CIDR:                       podRange,
		NodeIP:                     nodeIP,
		LocalStages:                stages,
		PodPlayStageParallelism:    parallel,
		NodePlayStageParallelism:   parallel,
		NodeLeaseParallelism:       parallel,
		PodsOnNodeSyncParallelism:  parallel,
		NodeLeaseDurationSeconds:   lease,
		ID:                         id,
	}, nil
}

// waitReady waits for the API server, which may start at the same time.
func waitReady(ctx context.Context, client kubernetes.Interface) error {
	for {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server is not ready: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// endWithParent leaves at once when another process has become the parent.
func endWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(1)
}
