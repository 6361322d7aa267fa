package connectivity

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// perfTime bounds one measurement.
const perfTime = 20 * time.Second

// path is one that is measured.
type path struct {
	name   string
	from   Pod
	target netip.AddrPort
}

// paths are those of the first node, to itself and to the second; the first is the reference.
func paths(s Scene, family string) []path {
	find := func(name string) (Pod, netip.AddrPort, bool) {
		i := slices.IndexFunc(s.Pods, func(p Pod) bool { return p.Name == name })
		if i < 0 {
			return Pod{}, netip.AddrPort{}, false
		}
		a, ok := s.Pods[i].addr(family)
		return s.Pods[i], netip.AddrPortFrom(a, uint16(s.Port+1)), ok
	}
	var out []path
	add := func(name, from, to string) {
		f, _, ok1 := find(from)
		_, t, ok2 := find(to)
		if ok1 && ok2 {
			out = append(out, path{name, f, t})
		}
	}
	here := s.Nodes[0]
	if len(s.Nodes) > 1 {
		there := s.Nodes[1]
		add("node → other node", hostPodName(here), hostPodName(there))
		add("pod → pod of other node", podName(here, 0), podName(there, 0))
		add("pod → other node", podName(here, 0), hostPodName(there))
		add("node → pod of other node", hostPodName(here), podName(there, 0))
	} else {
		add("node → itself", hostPodName(here), hostPodName(here))
	}
	add("pod → pod of this node", podName(here, 0), podName(here, 1))
	add("pod → this node", podName(here, 0), hostPodName(here))
	add("node → pod of this node", hostPodName(here), podName(here, 0))
	return out
}

// figures measures one path after the other, each beside the reference.
func figures(ctx context.Context, r *Report, s Scene, sessions map[string]*session) {
	measure := func(p path) (bits float64, trip time.Duration, err error) {
		probe := Probe{Kind: ProbeTrips, Target: p.target.String(), Within: perfTime}
		res, err := sessions[p.from.Name].ask(ctx, probe)
		if err == nil && res.Error != "" {
			err = fmt.Errorf("%s", res.Error)
		}
		if err != nil {
			return 0, 0, err
		}
		trip = res.Took
		probe.Kind = ProbeStream
		res, err = sessions[p.from.Name].ask(ctx, probe)
		if err == nil && res.Error != "" {
			err = fmt.Errorf("%s", res.Error)
		}
		return res.BitsPerS, trip, err
	}
	for _, family := range s.Families {
		list := paths(s, family)
		if len(list) == 0 {
			continue
		}
		reference := list[0]
		r.Reference = reference.name
		for i, p := range list {
			f := Figure{Path: p.name, Family: family}
			refBits, refTrip, err := measure(reference)
			if err == nil && i > 0 {
				f.BitsPerS, f.RoundTrip, err = measure(p)
			} else {
				f.BitsPerS, f.RoundTrip = refBits, refTrip
			}
			if err != nil {
				f.Error = err.Error()
			} else {
				f.ThroughputRatio, f.RoundTripRatio = f.BitsPerS/refBits, float64(refTrip)/float64(f.RoundTrip)
			}
			r.Figures = append(r.Figures, f)
		}
	}
}
