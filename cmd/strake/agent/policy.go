package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/memory"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/netpol/enforce"
	"github.com/strake-io/strake/netpol/flows"
	"github.com/strake-io/strake/netpol/history"
)

// policies are the network policies of a node; for cni they are the Guard.
type policies struct {
	*enforce.Enforcer
	client  kubernetes.Interface
	events  record.EventBroadcaster
	history *history.Log
	record  func() (*flows.Recorder, error) // opens the record of flows; nil: none are recorded
}

func newPolicies(cfg Config, rc *rest.Config, client kubernetes.Interface, d *bpf.Datapath) (*policies, error) {
	rc = rest.CopyConfig(rc)
	rc.ContentType = "" // custom resources are JSON
	custom, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("network policies: %w", err)
	}
	past, err := history.Open(cfg.Layout.PolicyHistory())
	if err != nil { // a disk that is full keeps no policy from being enforced
		klog.ErrorS(err, "What is enforced of network policies is not noted")
		past = nil
	}
	events := record.NewBroadcaster()
	p := &policies{
		Enforcer: enforce.New(enforce.Config{
			Client: client, Dynamic: custom, Tables: d.Policies(), NodeName: cfg.NodeName, DNSAddrs: cfg.DNSAddrs, KeepFlows: cfg.KeepFlows, MaxRules: cfg.MaxPolicyRules, MaxPeers: cfg.MaxPolicyPeers,
			History:  past,
			Whose:    cfg.Recording.On,
			Synced:   func() { go memory.GiveBack() }, // what lists bring is several times what is kept of it
			Recorder: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "strake-policy", Host: cfg.NodeName}),
		}),
		client: client, events: events, history: past,
	}
	if cfg.Recording.On {
		p.record = func() (*flows.Recorder, error) { return p.newRecord(cfg, d) }
	}
	return p, nil
}

// newRecord goes on with the record of flows.
func (p *policies) newRecord(cfg Config, d *bpf.Datapath) (*flows.Recorder, error) {
	source, err := d.FlowRecord()
	if err != nil {
		return nil, err
	}
	r, err := flows.New(flows.Config{
		Dir: cfg.Layout.FlowRecord(), Node: cfg.NodeName, Source: source, Size: cfg.Recording.Size << 20, Age: cfg.Recording.Age,
		Names: flows.Names{
			End: func(a netip.Addr, at time.Time) (flows.End, bool) {
				who, ok := p.Whose(a, at)
				return flows.End{Namespace: who.Namespace, Pod: who.Pod, Labels: who.Labels, Node: who.Node}, ok
			},
			Policy: p.PolicyName, Service: d.ServiceAt,
		},
	})
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return r, nil
}

// endpoint is an attachment as policies see it.
func endpoint(a cni.Allocation) enforce.Endpoint {
	ep := enforce.Endpoint{Owner: a.ContainerID + "/" + a.Ifname, UID: a.UID, Addrs: a.Addrs}
	ep.Namespace, ep.Pod, _ = strings.Cut(a.Pod, "/")
	return ep
}

// Admit implements cni.Guard.
func (p *policies) Admit(ctx context.Context, a cni.Allocation) error {
	return p.Enforcer.Admit(ctx, endpoint(a))
}

// Release implements cni.Guard.
func (p *policies) Release(a cni.Allocation) { p.Enforcer.Release(endpoint(a).Owner) }

// known tells of the pods that there are.
func (p *policies) known(attachments []cni.Allocation) {
	all := make([]enforce.Endpoint, 0, len(attachments))
	for _, a := range attachments {
		all = append(all, endpoint(a))
	}
	p.Enforcer.Known(all...)
}

// run enforces until ctx ends.
func (p *policies) run(ctx context.Context) error {
	p.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: p.client.CoreV1().Events("")})
	defer p.events.Shutdown()
	var noting sync.WaitGroup
	if p.history != nil {
		noting.Go(func() { p.history.Run(ctx) })
	}
	if p.record != nil {
		noting.Go(func() { p.recordFlows(ctx, p.Ready(), recordRetry) })
	}
	defer noting.Wait()
	return p.Enforcer.Run(ctx)
}

// recordRetry is how long the record waits for a disk that was full when it was to be opened.
const recordRetry = 10 * time.Second

// recordFlows records until ctx ends, once it is known who is who: what happens before waits in the kernel. A disk that is full keeps no policy from being
// enforced.
func (p *policies) recordFlows(ctx context.Context, known <-chan struct{}, retry time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-known:
	}
	for told := false; ctx.Err() == nil; told = true {
		r, err := p.record()
		if err == nil {
			if err := r.Run(ctx); err != nil {
				klog.ErrorS(err, "The end of the record of flows")
			}
			return
		}
		if !told {
			klog.ErrorS(err, "Flows are not recorded yet: it is tried again until they are", "every", retry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}
