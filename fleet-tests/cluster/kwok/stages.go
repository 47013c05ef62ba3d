package main

import (
	"fmt"

	nodefast "sigs.k8s.io/kwok/kustomize/stage/node/fast"
	nodeheartbeat "sigs.k8s.io/kwok/kustomize/stage/node/heartbeat-with-lease"
	podfast "sigs.k8s.io/kwok/kustomize/stage/pod/fast"
	"sigs.k8s.io/kwok/pkg/apis/internalversion"
	"sigs.k8s.io/kwok/pkg/apis/v1alpha1"
	"sigs.k8s.io/yaml"
)

// stages are what kwok calls fast: everything happens at once.
func stages() (map[internalversion.StageResourceRef][]*internalversion.Stage, error) {
	byKind := map[internalversion.StageResourceRef][]*internalversion.Stage{}
	for _, text := range []string{
		nodefast.DefaultNodeInit,
		nodeheartbeat.DefaultNodeHeartbeatWithLease,
		podfast.DefaultPodReady,
		podfast.DefaultPodComplete,
		podfast.DefaultPodDelete,
	} {
		var read v1alpha1.Stage
		if err := yaml.UnmarshalStrict([]byte(text), &read); err != nil {
			return nil, fmt.Errorf("a stage of kwok's: %w", err)
		}
		stage, err := internalversion.ConvertToInternalStage(&read)
		if err != nil {
			return nil, fmt.Errorf("stage %s: %w", read.Name, err)
		}
		kind := stage.Spec.ResourceRef
		byKind[kind] = append(byKind[kind], stage)
	}
	return byKind, nil
}
