{{/*
Templates loop over fleets: the pods of one role, and of one bundle where there are several. A definition that takes a fleet
takes (dict "root" $ "fleet" $fleet).
*/}}

{{/* All fleets, as a YAML list of {role, component, bundle, model, values}. */}}
{{- define "e2llm.fleets" -}}
{{- range $role := list "encoder" "decoder" }}
{{- range $bundle := $.Values.bundles | default (list (dict "name" "" "bundle" $.Values.bundle)) }}
- role: {{ $role }}
  component: {{ $role }}
  bundle: {{ $bundle.name | quote }}
  model: {{ $bundle.bundle | quote }}
  values: {{- mergeOverwrite (deepCopy (index $.Values $role)) (index $bundle $role | default dict) | toYaml | nindent 4 }}
{{- end }}
{{- end }}
{{- range $role := list "index" "coordinator" }}
- role: {{ $role }}
  component: {{ $role }}
  bundle: ""
  model: ""
  values: {{- index $.Values $role | toYaml | nindent 4 }}
{{- end }}
{{- end }}

{{/* Leaves room for the longest suffix, -bulk-encoder-JOB, in the 63 characters of a name. Takes the root. */}}
{{- define "e2llm.fullname" -}}
{{- $name := .Release.Name }}
{{- if not (contains "e2llm" $name) }}{{ $name = printf "%s-e2llm" $name }}{{ end }}
{{- .Values.nameOverride | default $name | trunc 28 | trimSuffix "-" }}
{{- end }}

{{/* Of a fleet's objects. */}}
{{- define "e2llm.name" -}}
{{ include "e2llm.fullname" .root }}-{{ .fleet.component }}{{ with .fleet.bundle }}-{{ . }}{{ end }}
{{- end }}

{{/* Of a role's users' Service, and with -headless of the one that other roles resolve. Takes root, role and bundle. */}}
{{- define "e2llm.service" -}}
{{ include "e2llm.fullname" .root }}-{{ .role }}{{ with .bundle }}-{{ . }}{{ end }}
{{- end }}

{{/* What tells this fleet's own pods from all others. */}}
{{- define "e2llm.selector" -}}
app.kubernetes.io/name: e2llm
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .fleet.component }}
{{- with .fleet.bundle }}
e2llm.dev/bundle: {{ . }}
{{- end }}
{{- end }}

{{/* All pods of a role, workers of a bulk run too. Takes root, role and, if it matters, bundle. */}}
{{- define "e2llm.roleSelector" -}}
app.kubernetes.io/name: e2llm
app.kubernetes.io/instance: {{ .root.Release.Name }}
e2llm.dev/role: {{ .role }}
{{- with .bundle }}
e2llm.dev/bundle: {{ . }}
{{- end }}
{{- end }}

{{- define "e2llm.labels" -}}
{{ include "e2llm.selector" . }}
app.kubernetes.io/part-of: e2llm
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
e2llm.dev/role: {{ .fleet.role }}
{{- end }}

{{/* Of objects that belong to no fleet. Takes the root. */}}
{{- define "e2llm.commonLabels" -}}
app.kubernetes.io/name: e2llm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: e2llm
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "e2llm.image" -}}
{{- $image := .root.Values.image }}
{{- $tag := $image.tag | default .root.Chart.AppVersion }}
{{- $digest := $image.digest }}
{{- with .fleet.values.gpu }}
{{- if .enabled }}
{{- $tag = print $tag .tagSuffix }}
{{- $digest = .digest }}
{{- end }}
{{- end }}
{{- $image.repository }}{{ if $digest }}@{{ $digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{/* Calls are balanced over all pods of a headless Service. Takes root, role and bundle. */}}
{{- define "e2llm.url" -}}
{{ ternary "dns+https" "dns" .root.Values.tls.enabled }}:///{{ include "e2llm.service" . }}-headless:7700
{{- end }}

{{/* One address per shard, in order. Takes the root. */}}
{{- define "e2llm.indexUrls" -}}
{{- $scheme := ternary "https" "http" .Values.tls.enabled }}
{{- $name := include "e2llm.service" (dict "root" . "role" "index") }}
{{- $urls := list }}
{{- range $shard := until (int .Values.index.shards) }}
{{- $urls = append $urls (printf "%s://%s-%d.%s-headless:7700" $scheme $name $shard $name) }}
{{- end }}
{{- join "," $urls }}
{{- end }}

{{/* What the command line takes for --server: every role's address as users have it. Takes root and bundle. */}}
{{- define "e2llm.userAddresses" -}}
{{- $scheme := ternary "https" "http" .root.Values.tls.enabled }}
{{- $pairs := list }}
{{- range $role := list "encoder" "decoder" "coordinator" }}
{{- $bundle := ternary "" $.bundle (eq $role "coordinator") }}
{{- $pairs = append $pairs (printf "%s=%s://%s:7700" $role $scheme (include "e2llm.service" (dict "root" $.root "role" $role "bundle" $bundle))) }}
{{- end }}
{{- range $url := include "e2llm.indexUrls" .root | splitList "," }}
{{- $pairs = append $pairs (printf "index=%s" $url) }}
{{- end }}
{{- join "," $pairs }}
{{- end }}

{{/* Combinations of values that a schema cannot refuse in words. Takes the root. */}}
{{- define "e2llm.check" -}}
{{- $v := .Values }}
{{- if not $v.store.url }}
{{- fail "store.url is missing: give the object store, such as s3://bucket/prefix" }}
{{- end }}
{{- if not (or $v.auth.tokensSecret (and $v.tls.enabled $v.tls.mutual) $v.auth.allowUnauthenticated) }}
{{- fail "nobody would be authenticated: set auth.tokensSecret, or tls.enabled with tls.mutual, or auth.allowUnauthenticated" }}
{{- end }}
{{- if and $v.auth.tokensSecret (not $v.auth.peerTokenSecret) }}
{{- fail "auth.tokensSecret needs auth.peerTokenSecret: encoders and decoders call other roles and need tokens of their own" }}
{{- end }}
{{- range $role := list "encoder" "decoder" "index" "coordinator" }}
{{- if and $v.tls.enabled (not (index $v.tls.secrets $role | default $v.tls.secret)) }}
{{- fail (printf "tls.enabled needs tls.secret, or tls.secrets.%s: the Secret with tls.crt, tls.key and ca.crt" $role) }}
{{- end }}
{{- end }}
{{- if and (eq $v.weights.source "volume") (not $v.weights.claim) }}
{{- fail "weights.source volume needs weights.claim: the PersistentVolumeClaim with the weights" }}
{{- end }}
{{- range $v.bundles }}
{{- if and $v.gateway.enabled (not .hostnames) }}
{{- fail (printf "bundle %s needs hostnames: the gateway tells bundles apart by them" .name) }}
{{- end }}
{{- end }}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) }}
{{- fail "gateway.enabled needs gateway.parentRefs: the Gateway that the route is attached to" }}
{{- end }}
{{- if and $v.gc.enabled (gt (int $v.index.shards) 1) }}
{{- fail "gc.enabled needs index.shards 1: garbage of several shards is not collected yet" }}
{{- end }}
{{- if and $v.bulk.enabled $v.bundles (not $v.bulk.bundle) }}
{{- fail "bulk.enabled with bundles needs bulk.bundle: the name of the one whose workers it starts" }}
{{- end }}
{{- if and $v.bulk.enabled (not $v.bulk.inputs) }}
{{- fail "bulk.enabled needs bulk.inputs: what the run is to read" }}
{{- end }}
{{- end }}
