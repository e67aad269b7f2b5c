{{/* The command line of one role. Takes root and fleet, and until: the job at whose end a bulk worker exits. */}}
{{- define "e2llm.serverArgs" -}}
{{- $v := .fleet.values }}
{{- $to := dict "root" .root "bundle" .fleet.bundle }}
- serve
- {{ .fleet.role }}
- --listen=0.0.0.0:7700
- --admin-listen=0.0.0.0:7780
{{- if eq .fleet.role "index" }}
- --index-dir=/var/lib/e2llm/view
- --shards={{ $v.shards }}
{{- else if eq .fleet.role "coordinator" }}
- --lease={{ $v.lease }}
- --heartbeat={{ $v.heartbeat }}
{{- else }}
- --index-url={{ include "e2llm.indexUrls" .root }}
- --coordinator-url={{ include "e2llm.url" (dict "root" .root "role" "coordinator") }}
{{- if eq .fleet.role "decoder" }}
- --encoder-url={{ include "e2llm.url" (merge (dict "role" "encoder") $to) }}
- --document-cache={{ $v.documentCache }}
- --disk-cache={{ $v.diskCache }}
- --prefix-cache={{ $v.prefixCache }}
{{- end }}
- --device={{ ternary "cuda:0" "cpu" $v.gpu.enabled }}
{{- with .fleet.model }}
- --bundle={{ . }}
{{- end }}
{{- end }}
{{- with .until }}
- --until-job={{ . }}
{{- end }}
{{- if .root.Values.auth.allowUnauthenticated }}
- --allow-unauthenticated
{{- end }}
{{- range $v.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* Directories of the cache: weights, and files of the model hub. */}}
{{- define "e2llm.cacheEnv" -}}
- {name: HOME, value: /tmp}
- {name: E2LLM_CACHE, value: /var/cache/e2llm}
- {name: HF_HUB_CACHE, value: /var/cache/e2llm/hub}
{{- end }}

{{/* Fetches the weights into the cache; the server starts once they are there. */}}
{{- define "e2llm.pullContainer" -}}
{{- $weights := .root.Values.weights }}
name: weights
image: {{ $weights.image | default (include "e2llm.image" .) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args:
- models
- pull
{{- if eq $weights.source "store" }}
- --from-store
{{- end }}
{{- with .fleet.model }}
- {{ . | quote }}
{{- end }}
{{- include "e2llm.envFrom" . | nindent 0 }}
env:
{{- include "e2llm.cacheEnv" . | nindent 0 }}
{{- with concat $weights.env .root.Values.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- include "e2llm.containerSecurity" . | nindent 0 }}
resources:
  {{- toYaml .fleet.values.resources | nindent 2 }}
volumeMounts:
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/e2llm}
{{- end }}

{{- define "e2llm.serverContainer" -}}
{{- $root := .root }}
{{- $role := .fleet.role }}
{{- $v := .fleet.values }}
{{- $computes := has $role (list "encoder" "decoder") }}
name: {{ $role }}
image: {{ include "e2llm.image" . }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
args:
{{- include "e2llm.serverArgs" . | trim | nindent 0 }}
{{- include "e2llm.envFrom" . | nindent 0 }}
env:
{{- if $computes }}
{{- include "e2llm.cacheEnv" . | nindent 0 }}
- {name: HF_HUB_OFFLINE, value: "1"}
# As many threads as cores.
- {name: RAYON_NUM_THREADS, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "1"}}}
- {name: CANDLE_NUM_THREADS, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "1"}}}
{{- else }}
- {name: HOME, value: /tmp}
{{- end }}
{{- if eq $role "index" }}
- {name: E2LLM_SHARD, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}
{{- end }}
{{- include "e2llm.identityEnv" . }}
{{- if and $root.Values.tls.enabled $root.Values.tls.mutual }}
- {name: E2LLM_TLS_CLIENT_CA, value: /etc/e2llm/tls/ca.crt}
{{- end }}
{{- if $root.Values.auth.tokensSecret }}
- {name: E2LLM_TOKENS, value: /etc/e2llm/tokens/tokens.yaml}
{{- end }}
{{- with $root.Values.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
ports:
- {name: grpc, containerPort: 7700}
- {name: admin, containerPort: 7780}
startupProbe:
  httpGet: {path: {{ ternary "/forwardz" "/readyz" $computes }}, port: admin}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: {{ div $v.startupSeconds 5 }}
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
# Other nodes need a moment to stop sending new calls; without a shell in the image this is the kubelet's own sleep.
lifecycle: {preStop: {sleep: {seconds: 5}}}
{{- include "e2llm.containerSecurity" . | nindent 0 }}
resources:
  {{- $resources := deepCopy $v.resources }}
  {{- if and $computes $v.gpu.enabled }}
  {{- $_ := set $resources.limits $v.gpu.resource 1 }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
volumeMounts:
- {name: tmp, mountPath: /tmp}
{{- if eq $role "index" }}
- {name: view, mountPath: /var/lib/e2llm}
{{- end }}
{{- if and $computes (eq $root.Values.weights.source "volume") }}
- {name: weights, mountPath: /var/cache/e2llm, readOnly: true}
{{- if eq $role "decoder" }}
- {name: cache, mountPath: /var/cache/e2llm/soft-prompts}
{{- end }}
{{- else if $computes }}
- {name: cache, mountPath: /var/cache/e2llm}
{{- end }}
{{- include "e2llm.identityMounts" . }}
{{- if $root.Values.auth.tokensSecret }}
- {name: tokens, mountPath: /etc/e2llm/tokens, readOnly: true}
{{- end }}
{{- end }}

{{/* The template of a pod that serves one role. Takes what serverArgs takes. */}}
{{- define "e2llm.serverPod" -}}
{{- $root := .root }}
{{- $v := .fleet.values }}
{{- $computes := has .fleet.role (list "encoder" "decoder") }}
{{- $nodeSelector := $v.nodeSelector }}
{{- $tolerations := $v.tolerations }}
metadata:
  {{- include "e2llm.podMetadata" . | trim | nindent 2 }}
spec:
  {{- include "e2llm.podSettings" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ $v.terminationGracePeriodSeconds }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if .until }}
  restartPolicy: Never
  {{- end }}
  {{- if and $computes $v.gpu.enabled }}
  {{- $nodeSelector = merge (deepCopy $v.nodeSelector) $v.gpu.nodeSelector }}
  {{- $tolerations = concat $v.tolerations $v.gpu.tolerations }}
  {{- with $v.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- end }}
  {{- with $nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $root.Values.topologySpread }}
    labelSelector:
      matchLabels:
        {{- include "e2llm.selector" $ | nindent 8 }}
    {{- if has $.fleet.component (list "encoder" "decoder" "coordinator") }}
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  {{- if and $computes (ne $root.Values.weights.source "volume") }}
  initContainers:
  - {{- include "e2llm.pullContainer" . | trim | nindent 4 }}
  {{- end }}
  containers:
  - {{- include "e2llm.serverContainer" . | trim | nindent 4 }}
  volumes:
  - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
  {{- if $computes }}
  {{- if or (ne $root.Values.weights.source "volume") (eq .fleet.role "decoder") }}
  - {name: cache, emptyDir: {sizeLimit: {{ $v.cacheSize }}}}
  {{- end }}
  {{- if eq $root.Values.weights.source "volume" }}
  - {name: weights, persistentVolumeClaim: {claimName: {{ $root.Values.weights.claim }}, readOnly: true}}
  {{- end }}
  {{- else if eq .fleet.role "index" }}
  {{- if not $v.view.persistent }}
  - {name: view, emptyDir: {sizeLimit: {{ $v.view.size }}}}
  {{- end }}
  {{- end }}
  {{- include "e2llm.identityVolumes" . | trim | nindent 2 }}
  {{- with $root.Values.auth.tokensSecret }}
  - {name: tokens, secret: {secretName: {{ . }}, defaultMode: 0440}}
  {{- end }}
{{- end }}
