package podworker

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodIPs(t *testing.T) {
	const v4First, v6First, v4 = "192.0.2.1 2001:db8::1", "2001:db8::1 192.0.2.1", "192.0.2.1"
	for name, test := range map[string]struct {
		host, sandbox, want string
		hostNetwork         bool
	}{
		"one":                       {v4, "10.0.0.5", "10.0.0.5", false},
		"none yet":                  {v4First, "", "", false},
		"both":                      {v4First, "10.0.0.5 fd00::5", "10.0.0.5 fd00::5", false},
		"both, the other way round": {v4First, "fd00::5 10.0.0.5", "10.0.0.5 fd00::5", false},
		"IPv6 first":                {v6First, "10.0.0.5 fd00::5", "fd00::5 10.0.0.5", false},
		"only the second":           {v6First, "10.0.0.5", "10.0.0.5", false},
		"more than the API takes":   {v4First, "10.0.0.5 10.0.0.6 fd00::5 fd00::6", "10.0.0.5 fd00::5", false},
		"what is no address":        {v4, "eth0", "", false},
		"a spelling":                {v6First, "FD00:0::5", "fd00::5", false},
		"the host's network":        {v6First, "", v6First, true},
		"the host's network of one": {v4, "10.0.0.5", v4, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: test.hostNetwork}}
			net := &runtimeapi.PodSandboxNetworkStatus{}
			for i, ip := range strings.Fields(test.sandbox) {
				if i == 0 {
					net.Ip = ip
				} else {
					net.AdditionalIps = append(net.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
				}
			}
			o := observed{sandbox: &runtimeapi.PodSandboxStatus{State: runtimeapi.PodSandboxState_SANDBOX_READY, Network: net}}
			if got := podIPs(p, o, strings.Fields(test.host)); !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
