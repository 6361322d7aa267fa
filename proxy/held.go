package proxy

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// tellHeld looks for processes that have the new node ports of Services, and tells of them by Events. The Services are served all the same.
func (p *Proxy) tellHeld(jobs []*job) {
	if p.cfg.Held == nil {
		return
	}
	var fresh []bpf.LoadBalancer
	owners := map[string]*corev1.Service{}
	for _, j := range jobs {
		had, now := p.looked[j.key], map[frontendKey]bool{}
		for _, r := range j.rows {
			for _, f := range r.Frontends {
				if f.Kind != bpf.NodePort {
					continue
				}
				k := frontendKey{f.Addr, r.Protocol}
				if now[k] = true; !had[k] {
					fresh = append(fresh, bpf.LoadBalancer{Owner: r.Owner, Name: r.Name, Protocol: r.Protocol, Frontends: []bpf.Frontend{f}})
					owners[r.Owner] = j.service
				}
			}
		}
		if p.looked[j.key] = now; len(now) == 0 {
			delete(p.looked, j.key)
		}
	}
	if len(fresh) == 0 {
		return
	}
	held, err := p.cfg.Held(fresh)
	if err != nil {
		klog.ErrorS(err, "Processes that have node ports of Services could not be looked for")
	}
	for _, h := range held {
		klog.InfoS("A node port is a process's as well", "port", h.String())
		p.cfg.Recorder.Eventf(owners[h.Owner], corev1.EventTypeWarning, "NodePortHeld", "Node %s: %s", p.cfg.Node.Name, h)
	}
}
