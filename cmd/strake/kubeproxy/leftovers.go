package kubeproxy

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/leftovers"
)

const (
	settledPoll  = 200 * time.Millisecond
	patience     = 30 * time.Second // until it is told that Services are waited for
	releasePause = time.Minute
)

// kubeProxy tells of what kube-proxy has left, or removes it once Services are served without it, and later what that left for connections
// that were open. Whatever fails here, Services are served.
func kubeProxy(ctx context.Context, clean bool, settled func() bool) error {
	found, err := leftovers.FindKubeProxy()
	if err != nil {
		klog.ErrorS(err, "Can't tell whether kube-proxy has left rules")
	}
	if found.Found() && !clean {
		klog.InfoS("kube-proxy has left rules, which work on the same packets: start with --clean-kube-proxy, or run `kube-proxy --cleanup`", "found", found.String())
	}
	if found.Found() && clean {
		tell := time.After(patience)
		for !settled() {
			select {
			case <-ctx.Done():
				return nil
			case <-tell:
				klog.InfoS("kube-proxy's rules stay until all Services are served without it: what was logged before tells which are not, and why")
			case <-time.After(settledPoll):
			}
		}
		removeRules(ctx)
	}
	for {
		released, err := leftovers.ReleaseFlows(ctx)
		if err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Can't tell whether connections are open that kube-proxy has translated")
		}
		if released {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(releasePause):
		}
	}
}

func removeRules(ctx context.Context) {
	if pid := leftovers.Running(); pid != 0 {
		klog.InfoS("kube-proxy runs still, and would put its rules back: they are left; stop it and start the agent again", "process", pid)
		return
	}
	removed, err := leftovers.CleanKubeProxy(ctx)
	if err != nil {
		klog.ErrorS(err, "Not all that kube-proxy has left could be removed")
	}
	if removed.Unkept != nil {
		klog.ErrorS(removed.Unkept, "Connections that kube-proxy's rules have translated may have ended with them")
	}
	klog.InfoS("Removed what kube-proxy has left", "commands", removed.Rules, "virtualServers", removed.Servers, "ipsets", removed.Sets, "kept", removed.Kept)
}
