// Command apiserver is a real Kubernetes API server with its etcd in one process, for tests: what
// kube-apiserver serves, from its own packages, and of the controllers those without which objects
// that are deleted never go. With --node-grace there are also those that look after nodes, which
// are another program's; and the first argument scheduler makes it kube-scheduler instead.
//
//	apiserver --data-dir DIR --port PORT --kubeconfig FILE [--node-grace TIME] [--end-with-parent]
//	          [-- FLAGS OF kube-apiserver]
//	apiserver scheduler --kubeconfig FILE [--end-with-parent] [-- FLAGS OF kube-scheduler]
//
// It listens on loopback. FILE gets the credentials of a cluster administrator before anything
// listens; /readyz tells when it serves. A restart in the same DIR is the same cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "apiserver: %v\n", err)
	}
	os.Exit(code)
}

func run() (int, error) {
	if len(os.Args) > 1 && os.Args[1] == "scheduler" {
		return runScheduler(os.Args[2:])
	}
	dataDir := flag.String("data-dir", "", "folder of etcd and of the certificates")
	port := flag.Int("port", 0, "port on 127.0.0.1")
	kubeconfigFlag := flag.String("kubeconfig", "", "where to write the administrator's kubeconfig")
	nodeGrace := flag.Duration("node-grace", 0, "how long a node may keep silent; 0: nobody looks after nodes")
	withParent := endWithParentFlag(flag.CommandLine)
	flag.Parse()
	if *dataDir == "" || *kubeconfigFlag == "" || *port < 1 || *port > 65535 {
		return 2, errors.New("--data-dir, --kubeconfig and --port (1 to 65535) are needed")
	}
	withParent()
	kubeconfig, err := filepath.Abs(*kubeconfigFlag)
	if err != nil {
		return 1, err
	}
	if err := os.MkdirAll(*dataDir, 0o700); err != nil {
		return 1, err
	}
	if err := os.Chdir(*dataDir); err != nil {
		return 1, err
	}
	keys, err := ensureKeys("pki")
	if err != nil {
		return 1, fmt.Errorf("certificates: %w", err)
	}
	if err := keys.writeKubeconfig(kubeconfig, *port); err != nil {
		return 1, fmt.Errorf("kubeconfig: %w", err)
	}
	// It ends with the process, which loses nothing that was written: closing it in order waits for
	// the API server's watches.
	store, err := startEtcd()
	if err != nil {
		return 1, fmt.Errorf("etcd: %w", err)
	}

	command := app.NewAPIServerCommand()
	command.SetArgs(append(serverFlags(keys, store.endpoint, *port), flag.Args()...))
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return 1, fmt.Errorf("kubeconfig: %w", err)
	}
	// SIGTERM ends this context, and with it the API server.
	ctx, cancel := context.WithCancel(command.Context())
	defer cancel()
	go func() {
		if err := runControllers(ctx, config, *nodeGrace); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "the controllers do not run")
		}
	}()
	return cli.Run(command), nil
}

// endWithParentFlag adds the flag; what it gives does as the flag says, and begins before anything
// that takes time.
func endWithParentFlag(flags *flag.FlagSet) func() {
	given := flags.Bool("end-with-parent", false, "end when the process that started this has ended")
	return func() {
		if *given {
			go endWithParent(os.Getppid())
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

// serverFlags is what differs from kube-apiserver's own defaults.
func serverFlags(keys *keys, etcd string, port int) []string {
	return []string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(port),
		"--tls-cert-file=" + keys.servingCert,
		"--tls-private-key-file=" + keys.servingKey,
		"--client-ca-file=" + keys.caCert,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + keys.accountKey,
		"--service-account-signing-key-file=" + keys.accountKey,
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=RBAC",
		// The Service kubernetes can't have an endpoint on loopback.
		"--endpoint-reconciler-type=none",
		"--profiling=false",
	}
}
