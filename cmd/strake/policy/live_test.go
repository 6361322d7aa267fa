package policy

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	policyclient "sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

// kubeconfig writes one for a client's configuration.
func kubeconfig(t *testing.T, c *rest.Config) string {
	t.Helper()
	k := clientcmdapi.NewConfig()
	k.Clusters["c"] = &clientcmdapi.Cluster{Server: c.Host, CertificateAuthority: c.CAFile, CertificateAuthorityData: c.CAData}
	k.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: c.BearerToken, ClientCertificate: c.CertFile, ClientKey: c.KeyFile, ClientCertificateData: c.CertData, ClientKeyData: c.KeyData}
	k.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	k.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*k, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCluster: the commands judge a real API server's objects, and a folder beside them.
func TestCluster(t *testing.T) {
	server := apiservertest.Start(t)
	config := server.As(t, "admin", "system:masters")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	policies, err := policyclient.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kube.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"web", "db"} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		made, err := kube.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ip := "10.244.0." + string(rune('2'+i))
		made.Status.PodIP, made.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
		if _, err := kube.CoreV1().Pods("default").UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = kube.NetworkingV1().NetworkPolicies("default").Create(ctx, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "closed"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := kubeconfig(t, config)
	run := func(want int, args ...string) string {
		t.Helper()
		code, out, errs := ask(t, "", append(args, "--kubeconfig", path)...)
		if code != want {
			t.Errorf("%v: exit code %d, %s, %s", args, code, out, errs)
		}
		return out
	}
	run(0, "check", "-e", "deny pods <- *")
	cnp := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: policyv1alpha2.ClusterNetworkPolicySpec{
		Tier: policyv1alpha2.AdminTier, Subject: policyv1alpha2.ClusterNetworkPolicySubject{Pods: &policyv1alpha2.NamespacedPod{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}},
		Ingress: []policyv1alpha2.ClusterNetworkPolicyIngressRule{{Action: policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, From: []policyv1alpha2.ClusterNetworkPolicyIngressPeer{{Namespaces: &metav1.LabelSelector{}}},
			Protocols: []policyv1alpha2.ClusterNetworkPolicyProtocol{{TCP: &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: &policyv1alpha2.Port{Number: 5432}}}}}},
	}}
	for { // the CRD is served a moment after the API server is
		if _, err = policies.PolicyV1alpha2().ClusterNetworkPolicies().Create(ctx, cnp, metav1.CreateOptions{}); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if out := run(0, "matrix", "--to", "default/db"); !strings.Contains(out, "TCP 5432") {
		t.Error(out)
	}
	// Nodes may answer the cluster's DNS, which has neither pods nor a Service then: policies know it all the same.
	out, err := kube.NetworkingV1().NetworkPolicies("default").Create(ctx, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "out"}, Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{
			NamespaceSelector: &metav1.LabelSelector{}, PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"k8s-app": "kube-dns"}}}}}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for want, dns := range map[string]DNS{
		"allowed": func(context.Context, kubernetes.Interface) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.96.0.10")}, nil
		},
		"denied": noDNS,
		"warning: the cluster's DNS is not known": func(context.Context, kubernetes.Interface) ([]netip.Addr, error) { return nil, errors.New("no") },
	} {
		var said bytes.Buffer
		cmd := Command(path, noNode, noRecords, dns)
		cmd.SetArgs([]string{"eval", "--from", "default/web", "--to", "10.96.0.10", "--port", "dns/UDP"})
		if want != "allowed" {
			cmd.SetArgs([]string{"eval", "--from", "default/web", "--to", "10.96.0.10", "--port", "53/UDP"})
		}
		cmd.SetOut(&said)
		cmd.SetErr(&said)
		if err := cmd.ExecuteContext(ctx); err != nil || !strings.HasPrefix(said.String(), want) {
			t.Errorf("eval: %v, %s, want %s", err, &said, want)
		}
	}
	if err := kube.NetworkingV1().NetworkPolicies("default").Delete(ctx, out.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	dir := manifestsOf(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: open}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}}\n")
	if out := run(1, "diff", dir); !strings.Contains(out, "NetworkPolicy default/open added") || !strings.Contains(out, "TCP 80") || strings.Contains(out, "removed") {
		t.Error(out)
	}
	if out := run(1, "diff", "--replace", dir); !strings.Contains(out, "NetworkPolicy default/closed removed") || !strings.Contains(out, "ClusterNetworkPolicy db removed") {
		t.Error(out)
	}
}
