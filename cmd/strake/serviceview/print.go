package serviceview

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// PrintList shows a line of each Service; wide adds the frontends besides the cluster's own addresses.
func PrintList(w io.Writer, list []Service, wide bool) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	head := "NAMESPACE\tNAME\tTYPE\tCLUSTER-IP\tPORTS\tBACKENDS\tHITS\tSTATE"
	if wide {
		head += "\tFRONTENDS"
	}
	fmt.Fprintln(t, head)
	for _, s := range list {
		ready, total := s.backends()
		backends := fmt.Sprint(ready)
		if total > ready {
			backends += fmt.Sprintf(" (%d draining)", total-ready)
		}
		if len(s.Ports) == 0 {
			backends = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s", s.Namespace, s.Name, or(s.Type), or(strings.Join(s.ClusterIPs, ",")), or(s.ports()), backends, s.Hits, s.state())
		if wide {
			fmt.Fprintf(t, "\t%s", or(strings.Join(s.others(), ",")))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	for _, s := range list {
		for _, d := range s.Drift {
			fmt.Fprintf(w, "drift: %s\n", d)
		}
	}
}

func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// backends counts addresses of backends, over all ports.
func (s Service) backends() (ready, total int) {
	seen := map[string]bool{}
	for _, p := range s.Ports {
		for _, b := range p.Backends {
			seen[b.Address] = seen[b.Address] || !b.Draining
		}
	}
	for _, ok := range seen {
		if total++; ok {
			ready++
		}
	}
	return ready, total
}

// ports are the numbers by which the Service is asked at its own addresses.
func (s Service) ports() string {
	var out []string
	seen := map[string]bool{}
	for _, p := range s.Ports {
		for _, f := range p.Frontends {
			text := f.Address[strings.LastIndexByte(f.Address, ':')+1:] + "/" + p.Protocol
			if f.Kind == "ClusterIP" && !seen[text] {
				seen[text] = true
				out = append(out, text)
			}
		}
	}
	return strings.Join(out, ",")
}

// others are the frontends that are not the cluster's own addresses.
func (s Service) others() []string {
	var out []string
	for _, p := range s.Ports {
		for _, f := range p.Frontends {
			if f.Kind != "ClusterIP" {
				out = append(out, f.Kind+":"+f.Address+"/"+p.Protocol)
			}
		}
	}
	return out
}

// AddDSR notes the node's way to pods of other nodes at Services that clients outside can ask.
func AddDSR(found []Service, on bool) {
	for i := range found {
		found[i].DSR = on && len(found[i].others()) > 0
	}
}

func (s Service) state() string {
	switch {
	case len(s.Drift) > 0:
		return "DRIFT"
	case s.Note != "":
		return s.Note
	}
	return "ok"
}

// PrintOne shows all of a Service.
func PrintOne(w io.Writer, s Service) {
	fmt.Fprintf(w, "%s/%s  %s  uid %s\n", s.Namespace, s.Name, or(s.Type), s.UID)
	if s.Note != "" {
		fmt.Fprintf(w, "  %s\n", s.Note)
	}
	if s.DSR {
		fmt.Fprintln(w, "  clients outside are answered by pods of other nodes directly (--lb-mode dsr)")
	}
	for _, p := range s.Ports {
		fmt.Fprintf(w, "\nport %s  %s", or(p.Name), p.Protocol)
		if p.AffinitySeconds > 0 {
			fmt.Fprintf(w, "  a client keeps its backend for %d s", p.AffinitySeconds)
		}
		fmt.Fprintln(w)
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "  FRONTEND\tKIND\tINSIDE\tOUTSIDE\tSOURCES")
		for _, f := range p.Frontends {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\n", f.Address, f.Kind, f.Inside, f.Outside, or(strings.Join(f.Sources, ",")))
		}
		t.Flush()
		fmt.Fprintln(t, "  BACKEND\tPOD\tNODE\tSTATE\tSETS\tWEIGHT\tHITS")
		for _, b := range p.Backends {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%d\t%d\n", b.Address, or(b.Pod), or(b.Node), b.State, b.sets(), b.Weight, b.Hits)
		}
		t.Flush()
		if p.Ready() == 0 {
			fmt.Fprintln(w, "  no backend: connections are refused")
		}
	}
	for _, h := range s.Held {
		fmt.Fprintf(w, "\n%s\n", h)
	}
	for _, d := range s.Drift {
		fmt.Fprintf(w, "\ndrift: %s\n", d)
	}
}

func (b Backend) sets() string {
	var l []string
	if b.All {
		l = append(l, "all")
	}
	if b.Local {
		l = append(l, "local")
	}
	return or(strings.Join(l, ","))
}
