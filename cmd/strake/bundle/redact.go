package bundle

import (
	"regexp"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// black stands where something was taken out.
const black = "[removed]"

// What looks like a secret, wherever it stands, and what is put in its place.
var secrets = []struct {
	what *regexp.Regexp
	with string
}{
	// PEM: keys, whole. Certificates are public, but nobody needs them here.
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|\z)`), black},
	// The same as base64, as kubeconfigs and Secrets have it.
	{regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=]+`), black},
	// JSON Web Tokens (RFC 7519): ServiceAccounts' tokens.
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), black},
	// Tokens with which nodes join.
	{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), black},
	// Credentials in a URL.
	{regexp.MustCompile(`(://)[^/\s:@]+:[^/\s@]+(@)`), "${1}" + black + "${2}"},
	{regexp.MustCompile(`(?i)(\bauthorization["']?\s*[:=]\s*["']?(?:bearer|basic)?\s*)[^\s"'\\,]+`), "${1}" + black},
	{regexp.MustCompile(`(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}`), "${1}" + black},
	// Names that say what they hold, in JSON, logs, flags and URLs. A word may come before: clientSecret, DB_PASSWORD.
	{regexp.MustCompile(named + `["']?\s*[:=]\s*)"(?:[^"\\]|\\.)+"`), `${1}"` + black + `"`},
	{regexp.MustCompile(named + `["']?\s*[:=]\s*)'[^']+'`), `${1}'` + black + `'`},
	{regexp.MustCompile(named + `\s*[:=]\s*)[^\s"'\\,;&}{[]+`), "${1}" + black}, // no quote behind the name: JSON's numbers and objects stay
}

const named = `(?i)([a-z0-9_-]*(?:password|passwd|secret|token|api[_-]?key|private[_-]?key|credential)`

// Text takes out of a text what looks like a secret.
func Text(s string) string {
	for _, r := range secrets {
		s = r.what.ReplaceAllString(s, r.with)
	}
	return s
}

// annotations that repeat a whole object, with all that is taken out of it elsewhere, or that programs of others write what they like into.
func cleanMeta(m *metav1.ObjectMeta) {
	m.ManagedFields = nil
	for k := range m.Annotations {
		m.Annotations[k] = black
	}
}

// cleanPod takes out of a pod what its author may have written secrets into. Names of variables stay.
func cleanPod(p *corev1.Pod) {
	cleanMeta(&p.ObjectMeta)
	clean := func(env []corev1.EnvVar, args, command []string, l *corev1.Lifecycle, probes ...*corev1.Probe) {
		for i := range env {
			if env[i].Value != "" {
				env[i].Value = black
			}
		}
		cleanArgs(args)
		cleanArgs(command)
		handlers := []*corev1.LifecycleHandler{}
		if l != nil {
			handlers = append(handlers, l.PostStart, l.PreStop)
		}
		for _, h := range handlers {
			if h != nil {
				cleanExec(h.Exec)
				cleanHTTP(h.HTTPGet)
			}
		}
		for _, pr := range probes {
			if pr != nil {
				cleanExec(pr.Exec)
				cleanHTTP(pr.HTTPGet)
			}
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			clean(c.Env, c.Args, c.Command, c.Lifecycle, c.LivenessProbe, c.ReadinessProbe, c.StartupProbe)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		c := &p.Spec.EphemeralContainers[i]
		clean(c.Env, c.Args, c.Command, c.Lifecycle, c.LivenessProbe, c.ReadinessProbe, c.StartupProbe)
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list { // what a container wrote as it ended
			for _, t := range []*corev1.ContainerStateTerminated{list[i].State.Terminated, list[i].LastTerminationState.Terminated} {
				if t != nil && t.Message != "" {
					t.Message = black
				}
			}
		}
	}
	for i := range p.Spec.Volumes { // volumes' drivers take options of every kind
		if p.Spec.Volumes[i].CSI != nil {
			p.Spec.Volumes[i].CSI.VolumeAttributes = nil
		}
		if p.Spec.Volumes[i].FlexVolume != nil {
			p.Spec.Volumes[i].FlexVolume.Options = nil
		}
	}
}

// cleanArgs keeps the program's name alone: arguments are as often secret as variables are.
func cleanArgs(args []string) {
	for i := range args {
		args[i] = black
	}
}

func cleanExec(e *corev1.ExecAction) {
	if e != nil {
		cleanArgs(e.Command)
	}
}

func cleanHTTP(h *corev1.HTTPGetAction) {
	if h == nil {
		return
	}
	for i := range h.HTTPHeaders {
		h.HTTPHeaders[i].Value = black
	}
}
