package podworker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// In these tables a container is a letter and a state: r runs, u runs but has not started by its probe, i runs but is
// ill, c was made only, 0 and 1 ended so, - is not there.
func TestDecide(t *testing.T) {
	for _, c := range []struct {
		policy          corev1.RestartPolicy
		init, main, box string // sidecars are capital letters
		want            string
	}{
		{"Always", "", "a-", "none", "sandbox"},
		{"Always", "", "a0", "dead", "sandbox"},
		{"Never", "", "a0", "dead", "finished"},
		{"Never", "", "a1b0", "dead", "finished"},
		{"Never", "", "a1b-", "dead", "sandbox"},
		{"OnFailure", "", "a0b1", "dead", "sandbox"},
		{"Never", "i1", "a-", "dead", "finished"},
		{"Always", "", "a-b-", "ready", "start a, start b"},
		{"Always", "", "arb1", "ready", "start b"},
		{"Always", "", "ai", "ready", "kill a"},
		{"Always", "", "ac", "ready", "start a"},
		{"Never", "", "a0br", "ready", ""},
		{"Never", "", "a0b1", "ready", "finished"},
		{"OnFailure", "", "a0b1", "ready", "start b"},
		{"Always", "i-j-", "a-", "ready", "start i"},
		{"Always", "irj-", "a-", "ready", ""},
		{"Always", "i1j-", "a-", "ready", "start i"},
		{"Never", "i1j-", "a-", "ready", "finished"},
		{"Always", "i0j0", "a-", "ready", "start a"},
		{"Always", "i-", "a1", "ready", "start a"}, // its trace is gone, but it was there before a
		{"Never", "S-i-", "a-", "ready", "start S"},
		{"Never", "Sui-", "a-", "ready", ""},
		{"Never", "Sri-", "a-", "ready", "start i"},
		{"Never", "S1ir", "a-", "ready", "start S"},
		{"Never", "S1i0", "ar", "ready", "start S"},
		{"Always", "S1i0", "a1", "ready", "start S, start a"},
		{"Never", "S1i0", "a0", "ready", "finished"},
		{"Always", "Sii0", "ar", "ready", "kill S"},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: c.policy}}
			o := observed{containers: map[string][]*runtimeapi.ContainerStatus{}}
			if c.box != "none" {
				o.sandbox = &runtimeapi.PodSandboxStatus{Id: "box"}
				if c.box == "dead" {
					o.sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
				}
			}
			ill := map[string]string{}
			add := func(text string) (out []corev1.Container) {
				for i := 0; i+1 < len(text); i += 2 {
					name := text[i : i+1]
					x := corev1.Container{Name: name}
					if name == strings.ToUpper(name) {
						x.RestartPolicy = always()
					}
					out = append(out, x)
					s := &runtimeapi.ContainerStatus{Id: name + text[i+1:i+2], State: runtimeapi.ContainerState_CONTAINER_RUNNING}
					switch text[i+1] {
					case '-':
						continue
					case 'i':
						ill[s.Id] = "ill"
					case 'c':
						s.State = runtimeapi.ContainerState_CONTAINER_CREATED
					case '0', '1':
						s.State, s.ExitCode = runtimeapi.ContainerState_CONTAINER_EXITED, int32(text[i+1]-'0')
					}
					o.containers[name] = append(o.containers[name], s)
				}
				return out
			}
			p.Spec.InitContainers, p.Spec.Containers = add(c.init), add(c.main)
			a := decide(p, o, ill, func(_, id string) bool { return !strings.HasSuffix(id, "u") })
			var got []string
			if a.createSandbox {
				got = append(got, "sandbox")
			}
			if a.finished {
				got = append(got, "finished")
			}
			for _, k := range a.kill {
				got = append(got, "kill "+k.name)
			}
			for _, s := range a.start {
				got = append(got, "start "+s.Name)
			}
			if want := strings.Split(c.want, ", "); c.want == "" && len(got) > 0 || c.want != "" && !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
