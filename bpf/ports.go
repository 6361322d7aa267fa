package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// portsOf calls do with the ports of the node that a service has. No process of the node gets them.
func (s *service) portsOf(do func(netPortKey)) {
	for _, f := range s.frontends {
		if f.kind == NodePort || f.kind == HostPort {
			k := netPortKey{Port: port16(f.port), Proto: s.protocol}
			if !addrOf(netAddr{B: f.addr}).Is4() {
				k.V6 = 1
			}
			do(k)
		}
	}
}

// movePorts keeps the ports that a service is to have, and frees those that it had.
func (t *loadBalancers) movePorts(c *change) error {
	var errs []error
	if c.want != nil {
		c.want.portsOf(func(k netPortKey) {
			if t.kept[k]++; t.kept[k] > 1 && !t.unkept[k] {
				return
			}
			delete(t.unkept, k)
			if err := t.ports.Put(k, uint8(1)); err != nil {
				t.unkept[k] = true // tried again with the service
				errs = append(errs, fmt.Errorf("bpf: keep port %d of service %s from other processes: %w", port16(k.Port), c.want.name, explain(err)))
			}
		})
	}
	if c.have != nil {
		c.have.portsOf(func(k netPortKey) {
			if t.kept[k]--; t.kept[k] > 0 {
				return
			}
			delete(t.kept, k)
			delete(t.unkept, k)
			if err := t.ports.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, fmt.Errorf("bpf: free port %d of service %s: %w", port16(k.Port), c.have.name, err))
			}
		})
	}
	return errors.Join(errs...)
}

// keepPorts makes the kept ports those of the services that are there.
func (t *loadBalancers) keepPorts() error {
	for _, s := range t.byID {
		s.portsOf(func(k netPortKey) { t.kept[k]++ })
	}
	missing := map[netPortKey]bool{}
	for k := range t.kept {
		missing[k] = true
	}
	var free []netPortKey
	if err := eachRow(t.ports, "kept ports", func(k netPortKey, _ uint8) {
		if !missing[k] {
			free = append(free, k)
		}
		delete(missing, k)
	}); err != nil {
		return err
	}
	for k := range missing {
		if err := t.ports.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("bpf: keep port %d: %w", port16(k.Port), explain(err))
		}
	}
	return deleteStrays(t.ports, "kept port", free)
}
