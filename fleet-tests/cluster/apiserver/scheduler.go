package main

import (
	"errors"
	"flag"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// runScheduler is kube-scheduler with its default configuration.
func runScheduler(args []string) (int, error) {
	flags := flag.NewFlagSet("scheduler", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "of an administrator of the cluster")
	withParent := endWithParentFlag(flags)
	if err := flags.Parse(args); err != nil {
		return 2, err
	}
	if *kubeconfig == "" {
		return 2, errors.New("--kubeconfig is needed")
	}
	withParent()
	command := app.NewSchedulerCommand()
	command.SetArgs(append([]string{
		"--kubeconfig=" + *kubeconfig,
		// There is one.
		"--leader-elect=false",
		// Nobody asks for its health and metrics.
		"--secure-port=0",
	}, flags.Args()...))
	return cli.Run(command), nil
}
