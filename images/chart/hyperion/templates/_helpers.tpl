{{- /* Names are fixed: the program knows them, and there is one control plane in a cluster. */ -}}
{{- define "hyperion.check" -}}
{{- if and (or .Values.operator.enabled .Values.workloadCluster.enabled) (ne .Release.Namespace "hyperion-system") -}}
{{- fail (printf "the control plane's namespace is hyperion-system, not %s: install with --namespace hyperion-system" .Release.Namespace) -}}
{{- end -}}
{{- if and .Values.agent.enabled (not .Values.agent.control) -}}
{{- fail "agent.control: HOST:PORT of the control plane is needed" -}}
{{- end -}}
{{- if and .Values.agent.enabled (not .Values.agent.caFingerprint) -}}
{{- fail "agent.caFingerprint: the fingerprint of the fleet's CA is needed" -}}
{{- end -}}
{{- if and .Values.agent.enabled (not .Values.agent.cluster) -}}
{{- fail "agent.cluster: the name of the HyperionCluster that this cluster is is needed" -}}
{{- end -}}
{{- end -}}

{{- define "hyperion.labels" -}}
app.kubernetes.io/part-of: hyperion
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "hyperion.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1).Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The file of --cluster-profile-providers. */ -}}
{{- define "hyperion.clusterProfileProviders" -}}
{{- dict "providers" .Values.operator.clusterProfileProviders | toJson -}}
{{- end -}}

{{- /* "true" where an object of a kind that not every cluster has is wanted. */ -}}
{{- define "hyperion.wanted" -}}
{{- $wanted := toString (index . 0) -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") ((index . 2).Capabilities.APIVersions.Has (index . 1))) -}}
true
{{- end -}}
{{- end -}}
