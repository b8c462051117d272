{{/*
One component: a Deployment, its service account, and a disruption budget where there are several.
Reads root, name, role, port, replicas, args, resources, and optionally ports, volumes, mounts, drain, startupSeconds,
strategy, nodeSelector, tolerations, scaled.
*/}}
{{- define "cogitate.workload" -}}
{{- $drain := .drain | default .root.Values.grace.drain -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "cogitate.name" . }}
  labels: {{- include "cogitate.labels" . | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "cogitate.name" . }}
  labels: {{- include "cogitate.labels" . | nindent 4 }}
spec:
  {{- if not .scaled }}
  replicas: {{ .replicas }}
  {{- end }}
  selector:
    matchLabels: {{- include "cogitate.selector" . | nindent 6 }}
  strategy: {{- .strategy | default (dict "type" "RollingUpdate" "rollingUpdate" (dict "maxUnavailable" 0 "maxSurge" 1)) | toYaml | nindent 4 }}
  template:
    metadata:
      labels: {{- include "cogitate.labels" . | nindent 8 }}
      {{- $annotations := deepCopy .root.Values.serviceMesh.podAnnotations }}
      {{- if .root.Values.telemetry.prometheus }}
      {{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" "9464") }}
      {{- end }}
      {{- with $annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "cogitate.name" . }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add .root.Values.grace.discovery $drain 10 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        seccompProfile: { type: RuntimeDefault }
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: topology.kubernetes.io/zone
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "cogitate.selector" . | nindent 14 }}
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "cogitate.selector" . | nindent 14 }}
      {{- with .nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .role }}
          image: {{ include "cogitate.image" . | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args:
            - --listen=$(POD_IP):{{ .port }}
            - --drain-grace-s={{ $drain }}
            - --log-level={{ .root.Values.logLevel }}
            - --log-format={{ .root.Values.logFormat }}
            {{- with .root.Values.telemetry.otlpEndpoint }}
            - --otlp-endpoint={{ . }}
            {{- end }}
            {{- if .root.Values.telemetry.prometheus }}
            - --prometheus-listen=$(POD_IP):9464
            {{- end }}
            {{- if .root.Values.tls.enabled }}
            - --tls-dir=/tls
            - --tls-server-name={{ include "cogitate.tlsName" .root }}
            - --health-listen=$(POD_IP):7199
            {{- end }}
            {{- range .args }}
            - {{ . | quote }}
            {{- end }}
          env:
            - { name: POD_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
            - { name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
            - { name: NODE_NAME, valueFrom: { fieldRef: { fieldPath: spec.nodeName } } }
          ports:
            - { name: grpc, containerPort: {{ .port }} }
            {{- range .ports }}
            - {{ toJson . }}
            {{- end }}
            {{- if .root.Values.telemetry.prometheus }}
            - { name: metrics, containerPort: 9464 }
            {{- end }}
          {{- $health := ternary 7199 .port .root.Values.tls.enabled }}
          startupProbe: { grpc: { port: {{ $health }} }, periodSeconds: 2, failureThreshold: {{ div (.startupSeconds | default 60) 2 }} }
          readinessProbe: { grpc: { port: {{ $health }} }, periodSeconds: 5 }
          livenessProbe: { grpc: { port: {{ $health }} }, periodSeconds: 10, failureThreshold: 6 }
          lifecycle: { preStop: { sleep: { seconds: {{ .root.Values.grace.discovery }} } } }
          resources: {{- toYaml .resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: { drop: [ALL] }
          volumeMounts:
            - { name: tmp, mountPath: /tmp }
            {{- if .root.Values.tls.enabled }}
            - { name: tls, mountPath: /tls, readOnly: true }
            {{- end }}
            {{- range .mounts }}
            - {{ toJson . }}
            {{- end }}
      volumes:
        - { name: tmp, emptyDir: { sizeLimit: 1Gi } }
        {{- if .root.Values.tls.enabled }}
        - { name: tls, secret: { secretName: {{ include "cogitate.name" . }}-tls, defaultMode: 0440 } }
        {{- end }}
        {{- range .volumes }}
        - {{ toJson . }}
        {{- end }}
{{- if .root.Values.tls.enabled }}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ include "cogitate.name" . }}
  labels: {{- include "cogitate.labels" . | nindent 4 }}
spec:
  secretName: {{ include "cogitate.name" . }}-tls
  issuerRef: { kind: {{ .root.Values.tls.issuer.kind }}, name: {{ .root.Values.tls.issuer.name }} }
  duration: {{ .root.Values.tls.hours }}h
  renewBefore: {{ div .root.Values.tls.hours 3 }}h
  usages: [digital signature, key encipherment, server auth, client auth]
  # Pods are called by their addresses: one name in common stands for all, and who it is says the URI.
  dnsNames: [{{ include "cogitate.tlsName" .root }}]
  uris: ["spiffe://{{ .root.Values.tls.trustDomain }}/{{ trimSuffix "-vllm" .role }}"]
{{- end }}
{{- if or .scaled (gt (int .replicas) 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "cogitate.name" . }}
  labels: {{- include "cogitate.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "cogitate.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* A service without an address of its own, unless a service mesh balances: clients see every pod, and balance calls. */}}
{{- define "cogitate.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "cogitate.name" . }}
  labels: {{- include "cogitate.labels" . | nindent 4 }}
spec:
  {{- if .root.Values.serviceMesh.headless }}
  clusterIP: None
  {{- end }}
  selector: {{- include "cogitate.selector" . | nindent 4 }}
  ports:
    - { name: grpc, port: {{ .port }}, targetPort: grpc, appProtocol: {{ .root.Values.serviceMesh.appProtocol }} }
{{- end -}}

{{/* More replicas under load, by CPU. */}}
{{- define "cogitate.autoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "cogitate.name" . }}
  labels: {{- include "cogitate.labels" . | nindent 4 }}
spec:
  scaleTargetRef: { apiVersion: apps/v1, kind: Deployment, name: {{ include "cogitate.name" . }} }
  minReplicas: {{ .replicas }}
  maxReplicas: {{ .autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: { name: cpu, target: { type: Utilization, averageUtilization: {{ .autoscaling.cpuUtilization }} } }
  # A pod that goes drains what it runs: not in a hurry.
  behavior: { scaleDown: { stabilizationWindowSeconds: 300, policies: [{ type: Pods, value: 1, periodSeconds: 60 }] } }
{{- end -}}
