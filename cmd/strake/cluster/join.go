package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/kubelet/certificates"
)

// Ticket is what a machine needs to become a node of a cluster. A node that has joined needs none.
type Ticket struct {
	Server   string // URL of the API server
	Token    string
	CAHashes []string // of the cluster's CA, "sha256:…"
}

// SettingsConfigMap is where the control plane tells the nodes what they share (Shared, in JSON), in namespace kube-system.
const (
	SettingsConfigMap = "strake-cluster"
	settingsKey       = "settings.json"
)

// Join makes the machine a node of the cluster of the ticket, or starts it if it is one, and returns when the node is Ready. flags
// and given are as for Up. What a first start that fails has made is taken back.
func Join(ctx context.Context, l layout.Layout, flags Settings, given func(flag string) bool, ticket Ticket, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("strake join needs root: run it with sudo")
	}
	release, err := exclusive(l)
	if err != nil {
		return err
	}
	defer release()
	u := &joinStart{start: newStart(l), ticket: ticket}
	return u.run(ctx, []step{
		{"check the machine", func(ctx context.Context) error { return u.check(ctx, flags, given) }},
		{"certificates of the node", u.bootstrap},
		{"settings of the cluster", u.learn},
		{"start containerd and agent", u.supervise},
		{"node Ready", func(ctx context.Context) error { return u.poll(ctx, func() error { return u.nodeReady(ctx) }) }},
		{"load the demo's image", u.loadImage},
	}, u.undo, out)
}

type joinStart struct {
	start
	ticket Ticket
}

func (u *joinStart) check(ctx context.Context, flags Settings, given func(string) bool) error {
	if err := u.l.Check(); err != nil {
		return err
	}
	if err := inItsNamespace(u.l); err != nil {
		return err
	}
	if err := notSystemds(u.l); err != nil {
		return err
	}
	saved, _, err := Load(u.l)
	switch {
	case err != nil:
		return err
	case u.isNew:
		if u.ticket.Server == "" {
			return fmt.Errorf("%s is not the folder of a node yet: give the URL of the cluster's API server, a token and the hash of its CA (`strake token create --print-join-command` on a machine of the cluster prints all of it)", u.l.Data)
		}
		u.s = flags
		u.s.APIServer, u.s.Port, u.s.EtcdPort, u.s.ServiceCIDRs = u.ticket.Server, 0, 0, nil
		if err := u.s.completeName(); err != nil {
			return err
		}
		if err := u.findAddress(); err != nil {
			return err
		}
	case !saved.Joined():
		return fmt.Errorf("%s is the folder of a cluster with a control plane of its own: join with another folder (--data-dir), or remove the cluster with `strake down --purge`", u.l.Data)
	default:
		if u.s, err = settle(u.l, flags, given); err != nil {
			return err
		}
		if err := u.moved(ctx); err != nil {
			return err
		}
		u.changed = !reflect.DeepEqual(u.s, saved)
	}
	if !u.fresh {
		return nil
	}
	return u.checkMachine(kubeletPorts(u.s))
}

// movedWithin bounds the question to an API server whether it is the node's.
const movedWithin = 10 * time.Second

// moved takes the API server's URL that was given to a node which has joined by another one, if the cluster is the same: the control plane's
// machine has another address or name.
func (u *joinStart) moved(ctx context.Context) error {
	to := u.ticket.Server
	if to == "" || to == u.s.APIServer {
		return nil
	}
	if err := servedAt(ctx, u.l, to); err != nil {
		return fmt.Errorf("the node in %s has joined %s: it can't join %s before `strake down --purge`, unless that is the same cluster's API server, of which there is no sign: %w", u.l.Data, u.s.APIServer, to, err)
	}
	u.s.APIServer = to
	return nil
}

// servedAt tells, by the certificates of both, whether the API server of the cluster that a node has joined answers at a URL: nobody else's
// server is believed, nor believes. Every kubelet has a certificate of the same CA for its own address, so the name in it counts, too.
func servedAt(ctx context.Context, l layout.Layout, url string) error {
	ctx, cancel := context.WithTimeout(ctx, movedWithin)
	defer cancel()
	rc, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig("node-network"))
	if err != nil {
		return err
	}
	rc.Host = url
	conf, err := rest.TLSConfigFor(rc)
	if err != nil {
		return err
	}
	conf.VerifyConnection = isAPIServer
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	rt, err := rest.HTTPWrappersForConfig(rc, tr)
	if err != nil {
		return err
	}
	c, err := kubernetes.NewForConfigAndClient(rc, &http.Client{Transport: rt})
	if err == nil {
		_, err = fetchShared(ctx, c)
	}
	return err
}

// isAPIServer refuses a server of the cluster that is not its API server.
func isAPIServer(c tls.ConnectionState) error {
	if name := c.PeerCertificates[0].Subject.CommonName; name != pki.APIServer {
		return fmt.Errorf("the server's certificate is %q's, not %q's", name, pki.APIServer)
	}
	return nil
}

// findAddress takes the machine's address on the way to the API server, unless the user named some.
func (u *joinStart) findAddress() error {
	if len(u.s.NodeAddrs) > 0 {
		return nil
	}
	a, err := u.s.addrToServer()
	if err != nil {
		return err
	}
	u.s.NodeAddrs, u.s.FoundAddrs = []netip.Addr{a}, true
	return nil
}

func (u *joinStart) bootstrap(ctx context.Context) error {
	u.touched = true
	if err := u.l.Prepare(); err != nil {
		return err
	}
	cfg := u.s.certificateConfig(u.l)
	cfg.Token, cfg.CAHashes = u.ticket.Token, u.ticket.CAHashes
	if err := certificates.Bootstrap(ctx, cfg); err != nil {
		return err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.NetworkKubeconfig)
	if err != nil {
		return err
	}
	u.client, err = kubernetes.NewForConfig(rc)
	return err
}

// learn asks the cluster what the node has to know of it, once: the agent follows what changes later.
func (u *joinStart) learn(ctx context.Context) error {
	if !u.isNew {
		return u.s.Save(u.l)
	}
	v, err := u.client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	if err := compatible(version.Get().GitVersion, v.GitVersion); err != nil {
		return err
	}
	// A control plane that has just come up may not have written it yet.
	if err := u.poll(ctx, func() error {
		m, err := fetchShared(ctx, u.client)
		if err == nil {
			u.s.Shared, err = readShared(m)
		}
		return err
	}); err != nil {
		return err
	}
	if err := u.s.completeFamilies(anywhere); err != nil {
		return err
	}
	if err := u.s.check(); err != nil {
		return err
	}
	return u.s.Save(u.l)
}

// maxSkew is how many minor releases a node may be behind its API server (Kubernetes' version skew policy).
const maxSkew = 3

func compatible(node, server string) error {
	n, err := utilversion.ParseGeneric(node)
	if err != nil {
		return fmt.Errorf("our version %q: %w", node, err)
	}
	s, err := utilversion.ParseGeneric(server)
	if err != nil {
		return fmt.Errorf("the API server's version %q: %w", server, err)
	}
	if n.Major() != s.Major() || n.Minor() > s.Minor() || n.Minor()+maxSkew < s.Minor() {
		return fmt.Errorf("this strake is %s, the API server %s: a node may be up to %d minor releases older and none newer; install the release of the server", node, server, maxSkew)
	}
	return nil
}

// fetchShared asks the control plane for what all nodes share.
func fetchShared(ctx context.Context, c kubernetes.Interface) (*corev1.ConfigMap, error) {
	m, err := c.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, SettingsConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("ConfigMap %s/%s, which the control plane of the same release writes: %w", metav1.NamespaceSystem, SettingsConfigMap, err)
	}
	return m, nil
}

// DNSAddrs are the addresses at which the nodes of a cluster of ours answer its DNS; none of another's.
func DNSAddrs(ctx context.Context, c kubernetes.Interface) ([]netip.Addr, error) {
	m, err := fetchShared(ctx, c)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := readShared(m)
	return s.DNSAddrs, err
}

// refreshWithin bounds what the start of an agent waits for the API server, without which the node works as well.
const refreshWithin = 2 * time.Second

// refresh returns a node's settings with what the cluster has changed of them since the node's last start, as far as it can be asked.
func refresh(ctx context.Context, l layout.Layout, s Settings) Settings {
	ctx, cancel := context.WithTimeout(ctx, refreshWithin)
	defer cancel()
	now := s
	err := func() error {
		rc, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig("node-network"))
		if err != nil {
			return err
		}
		c, err := kubernetes.NewForConfig(rc)
		if err != nil {
			return err
		}
		m, err := fetchShared(ctx, c)
		if err != nil {
			return err
		}
		if now, err = s.withShared(m); err != nil {
			return err
		}
		if reflect.DeepEqual(now, s) {
			return nil
		}
		return now.Save(l)
	}()
	if err != nil {
		klog.InfoS("The settings of the node's last start are taken", "because", err)
		return s
	}
	return now
}

// ConfigMap is how the control plane tells the settings.
func (s Shared) ConfigMap() (*corev1.ConfigMap, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: SettingsConfigMap}, Data: map[string]string{settingsKey: string(data)},
	}, nil
}
