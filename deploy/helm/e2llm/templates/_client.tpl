{{/*
The template of a pod that calls the services once and ends. Takes root, a fleet of the role client, name, args and resources, and
inputClaim, a claim to be mounted at /input.
*/}}
{{- define "e2llm.clientPod" -}}
metadata:
  {{- include "e2llm.podMetadata" . | trim | nindent 2 }}
spec:
  {{- include "e2llm.podSettings" . | nindent 2 }}
  restartPolicy: Never
  containers:
  - name: {{ .name }}
    image: {{ include "e2llm.image" . }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args:
    {{- range .args }}
    - {{ . | quote }}
    {{- end }}
    - --server={{ include "e2llm.userAddresses" (dict "root" .root "bundle" .fleet.bundle) }}
    {{- include "e2llm.envFrom" . | nindent 4 }}
    env:
    - {name: HOME, value: /tmp}
    {{- include "e2llm.identityEnv" . | trim | nindent 4 }}
    {{- with .root.Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "e2llm.containerSecurity" . | nindent 4 }}
    resources:
      {{- toYaml .resources | nindent 6 }}
    volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- if .inputClaim }}
    - {name: input, mountPath: /input, readOnly: true}
    {{- end }}
    {{- include "e2llm.identityMounts" . | trim | nindent 4 }}
  volumes:
  - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
  {{- with .inputClaim }}
  - {name: input, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
  {{- end }}
  {{- include "e2llm.identityVolumes" . | trim | nindent 2 }}
{{- end }}
