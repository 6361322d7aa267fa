package kubeproxy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/mirror"
)

// namesTTL is how long records live, in seconds, while nothing is known of the cluster's Corefile.
const namesTTL = 30

// Names says whether names that pods ask the cluster's DNS for are answered in the kernel.
type Names struct {
	Zone    string `json:"zone"`    // of the cluster; empty: they are not
	Service string `json:"service"` // of the DNS: NAMESPACE/NAME
	Config  string `json:"config"`  // the ConfigMap with its Corefile: NAMESPACE/NAME
}

// Check refuses what is no name of an object.
func (n Names) Check() error {
	if n.Zone == "" {
		return nil
	}
	for flag, v := range map[string]string{"--dns-service": n.Service, "--dns-config": n.Config} {
		if namespace, name, ok := strings.Cut(v, "/"); !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return fmt.Errorf("%s %s is not NAMESPACE/NAME", flag, v)
		}
	}
	return dns.Config{Zones: []string{n.Zone}}.Check()
}

// at are the devices where names are answered.
func (n Names) at(list []Device) []int {
	if n.Zone == "" {
		return nil
	}
	return ofPods(list)
}

// besides answers names beside the cluster's DNS; it does nothing if they are not to be answered.
type besides struct {
	cfg     Names
	client  kubernetes.Interface
	names   *dns.Names
	records *dns.KernelRecords
	beside  *dns.Beside
}

func (n Names) besides(client kubernetes.Interface, objects *mirror.Mirror, d *bpf.Datapath) (*besides, error) {
	if n.Zone == "" {
		return &besides{}, d.SetNameServers([]netip.AddrPort{})
	}
	b := &besides{cfg: n, client: client}
	var err error
	if b.names, err = dns.NewNames(objects, d.Names(), d, n.Zone); err != nil {
		return nil, err
	}
	b.records = dns.NewKernelRecords(objects, d.Records(), n.Zone)
	b.beside, err = dns.NewBeside(objects, d, b.names, b.records, n.Service)
	return b, err
}

func (b *besides) run(ctx context.Context) error {
	if b.names == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.names.Run(ctx) })
	g.Go(func() error { return b.records.Run(ctx) })
	g.Go(func() error { return b.beside.Run(ctx) })
	g.Go(func() error { return b.beside.FollowCorefile(ctx, b.client, b.cfg.Config) })
	return g.Wait()
}
