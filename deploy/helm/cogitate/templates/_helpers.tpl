{{/* Names and labels. A component is a dict: name, role, port, and what templates/_workload.tpl reads. */}}
{{- define "cogitate.name" -}}
{{- printf "%s-%s" .root.Release.Name .name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "cogitate.selector" -}}
app.kubernetes.io/name: {{ .role }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "cogitate.labels" -}}
{{ include "cogitate.selector" . }}
app.kubernetes.io/part-of: cogitate
cogitate.dev/calls-as: {{ if hasPrefix "decoder-" .name }}decoder{{ else }}{{ .name }}{{ end }}
{{- if hasPrefix "decoder-" .name }}
cogitate.dev/decoder: "true"
{{- end }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "cogitate.image" -}}
{{- printf "%s/%s:%s" .root.Values.image.registry .role (.root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}

{{/* Where a service of the mesh is: by name, host:port. */}}
{{- define "cogitate.at" -}}
{{- printf "%s-%s.%s.svc:%v" .root.Release.Name .name .root.Release.Namespace .port -}}
{{- end -}}

{{/* The name every server of the mesh answers to. */}}
{{- define "cogitate.tlsName" -}}
{{- printf "%s.%s.svc" .Release.Name .Release.Namespace -}}
{{- end -}}

{{- define "cogitate.pools" -}}
{{- $pools := dict -}}
{{- range $name, $given := .Values.decoders -}}
{{- $_ := set $pools $name (mergeOverwrite (deepCopy $.Values.decoderDefaults) (deepCopy ($given | default dict))) -}}
{{- end -}}
{{- toYaml $pools -}}
{{- end -}}
