package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// AttachNames makes names that the kernel knows be answered at the host's side of a veth of a pod that another plugin has made, in the stead of
// the name servers that SetNameServers tells. All else that the pod sends is left alone, and goes to others' programs at the same place.
// It needs Config.Beside.
func (d *Datapath) AttachNames(ifindex int) error {
	if d.net.Programs[namesProgram] == nil {
		return fmt.Errorf("bpf: interface %d: names are not answered at other plugins' pods: the datapath was opened without Beside", ifindex)
	}
	return d.attach(namesProgram, ifindex)
}

// DetachNames undoes AttachNames; an interface that is gone is no error.
func (d *Datapath) DetachNames(ifindex int) error { return d.detach(namesProgram, ifindex) }

// NamesAt are the interfaces of AttachNames, by index, those included that are gone.
func (d *Datapath) NamesAt() ([]int, error) { return interfacesWith(d.pinDir, namesProgram) }

// AttachBeside makes Services that a pod of another plugin asks for by packets, for no hook serves its socket, be served at the host's side of its veth, if that
// leads to this pod alone: what it asks the node's own address for passes no other program. All else that passes there is left alone, and goes to others' programs at the
// same place. It needs Config.Beside.
func (d *Datapath) AttachBeside(ifindex int) error {
	if d.net.Programs[besideProgram] == nil {
		return fmt.Errorf("bpf: interface %d: Services are not served at other plugins' pods: the datapath was opened without Beside", ifindex)
	}
	if err := d.attach(toBesideProgram, ifindex); err != nil { // an answer must find its way back from the first packet on
		return err
	}
	return d.attach(besideProgram, ifindex)
}

// DetachBeside undoes AttachBeside; an interface that is gone is no error.
func (d *Datapath) DetachBeside(ifindex int) error {
	return errors.Join(d.detach(besideProgram, ifindex), d.detach(toBesideProgram, ifindex))
}

// BesideAt are the interfaces of AttachBeside, by index, those included that are gone.
func (d *Datapath) BesideAt() ([]int, error) { return ReadBesideAt(d.pinDir) }

// ReadBesideAt is BesideAt of the programs pinned below pinDir; no agent need run.
func ReadBesideAt(pinDir string) ([]int, error) { return interfacesWith(pinDir, toBesideProgram) }

// SetNameServers tells the programs of AttachNames in whose stead to answer over UDP. It stays when the process ends.
func (d *Datapath) SetNameServers(want []netip.AddrPort) error {
	m := d.net.Maps["name_servers"]
	rows := map[netNameServer]bool{}
	for _, a := range want {
		if !plain(a.Addr()) || a.Port() == 0 {
			return fmt.Errorf("bpf: name server %s is no address with a port", a)
		}
		k := netNameServer{Addr: addr16(a.Addr()), Port: port16(a.Port())}
		rows[k] = true
		if err := m.Put(k, uint32(1)); err != nil {
			return fmt.Errorf("bpf: name server %s: %w", a, explain(err))
		}
	}
	have, err := nameServers(m)
	if err != nil {
		return err
	}
	for _, k := range have {
		if !rows[k] {
			if err := m.Delete(k); err != nil {
				return fmt.Errorf("bpf: name server %s: %w", addrOf(k.Addr), err)
			}
		}
	}
	return nil
}

// ReadNameServers are those that the programs pinned below pinDir were told, in order; no agent need run.
func ReadNameServers(pinDir string) ([]netip.AddrPort, error) {
	maps, done, err := openPins(pinDir, []string{"name_servers"})
	if err != nil {
		return nil, err
	}
	defer done()
	rows, err := nameServers(maps["name_servers"])
	var out []netip.AddrPort
	for _, k := range rows {
		out = append(out, netip.AddrPortFrom(addrOf(k.Addr), port16(k.Port)))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out, err
}

func nameServers(m *ebpf.Map) ([]netNameServer, error) {
	var out []netNameServer
	var k netNameServer
	var v uint32
	it := m.Iterate()
	for it.Next(&k, &v) {
		out = append(out, k)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("bpf: name servers: %w", err)
	}
	return out, nil
}
