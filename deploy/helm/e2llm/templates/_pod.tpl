{{/* Parts of every pod. They take root, and a fleet whose role names service account, certificate and token. */}}

{{- define "e2llm.podMetadata" -}}
labels:
  {{- include "e2llm.labels" . | nindent 2 }}
  {{- if eq .fleet.role "client" }}
  e2llm.dev/client: "true"
  {{- end }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A changed ConfigMap starts new pods.
  e2llm.dev/config: {{ include (print .root.Template.BasePath "/configmap.yaml") .root | sha256sum | trunc 16 }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "e2llm.podSettings" -}}
serviceAccountName: {{ include "e2llm.fullname" .root }}-{{ .fleet.role }}
automountServiceAccountToken: {{ .root.Values.serviceAccount.workloadIdentity }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  seccompProfile: {type: RuntimeDefault}
  {{- range $key, $id := .root.Values.securityContext }}
  {{- if not (kindIs "invalid" $id) }}
  {{ $key }}: {{ int64 $id }}
  {{- end }}
  {{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "e2llm.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "e2llm.envFrom" -}}
envFrom:
- configMapRef: {name: {{ include "e2llm.fullname" .root }}}
{{- with .root.Values.store.credentialsSecret }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{/* Under which key of auth.peerTokenSecret the token of this process is; empty if it calls nobody or needs none. */}}
{{- define "e2llm.tokenKey" -}}
{{- $keys := dict "encoder" "encoder" "bulk-encoder" "encoder" "decoder" "decoder" "bulk-decoder" "decoder" "submit" "submit" "gc" "gc" }}
{{- if .root.Values.auth.peerTokenSecret }}{{ get $keys .fleet.component }}{{ end }}
{{- end }}

{{/* How this process proves who it is, and verifies those it calls. */}}
{{- define "e2llm.identityEnv" -}}
{{- $v := .root.Values }}
{{- if $v.tls.enabled }}
- {name: E2LLM_TLS_CERT, value: /etc/e2llm/tls/tls.crt}
- {name: E2LLM_TLS_KEY, value: /etc/e2llm/tls/tls.key}
- {name: E2LLM_TLS_CA, value: /etc/e2llm/tls/ca.crt}
{{- end }}
{{- if include "e2llm.tokenKey" . }}
- {name: E2LLM_TOKEN_FILE, value: /etc/e2llm/token/token}
{{- end }}
{{- end }}

{{- define "e2llm.identityMounts" -}}
{{- $v := .root.Values }}
{{- if $v.tls.enabled }}
- {name: tls, mountPath: /etc/e2llm/tls, readOnly: true}
{{- end }}
{{- if include "e2llm.tokenKey" . }}
- {name: token, mountPath: /etc/e2llm/token, readOnly: true}
{{- end }}
{{- end }}

{{- define "e2llm.identityVolumes" -}}
{{- $v := .root.Values }}
{{- if $v.tls.enabled }}
- name: tls
  secret: {secretName: {{ index $v.tls.secrets .fleet.role | default $v.tls.secret }}, defaultMode: 0440}
{{- end }}
{{- if include "e2llm.tokenKey" . }}
- name: token
  secret:
    secretName: {{ $v.auth.peerTokenSecret }}
    defaultMode: 0440
    items: [{key: {{ include "e2llm.tokenKey" . }}, path: token}]
{{- end }}
{{- end }}
