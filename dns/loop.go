package dns

import (
	"crypto/rand"
	"strings"

	"github.com/miekg/dns"
	"k8s.io/klog/v2"
)

// probeZone holds names that do not exist anywhere (RFC 6761 6.4), so that no server has an answer of its own.
const probeZone = "loop.invalid."

func probeName() string { return strings.ToLower(rand.Text()) + "." + probeZone }

// detectLoop asks a server for its probe. If the question comes back to us, so would all others, without end.
func (f *Forwarder) detectLoop(u *upstream) {
	if _, err := exchange(new(dns.Msg).SetQuestion(u.probe, dns.TypeTXT), u.addr); err != nil {
		klog.V(2).InfoS("DNS server did not answer a probe", "server", u.addr, "err", err)
	}
}

// returned tells whether a name is a probe, and takes the server that sends us its own out of use.
func (f *Forwarder) returned(name string) bool {
	name = strings.ToLower(name)
	if !strings.HasSuffix(name, "."+probeZone) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range f.servers {
		if u.probe == name && !u.loops {
			u.loops = true
			klog.ErrorS(nil, "A DNS server sends our queries back to us, it is not asked any more; give the node a resolv.conf without it", "server", u.addr, "file", f.path)
		}
	}
	return true
}
