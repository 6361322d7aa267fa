package main

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/tests/lab"
)

// put puts objects into a cluster's etcd as its API server would store them, each under its key: through the API that takes minutes, and is not what
// is measured. The API server learns of them by its watch.
func put(ctx context.Context, c *lab.Cluster, objects iter.Seq2[string, runtime.Object]) error {
	etcd, err := etcdClient(c, "127.0.0.1:2379")
	if err != nil {
		return err
	}
	defer etcd.Close()
	encoder := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	const atOnce = 128 // etcd's default bound of a transaction
	var ops []clientv3.Op
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := etcd.Txn(ctx).Then(ops...).Commit()
		ops = nil
		if err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
		return nil
	}
	for key, obj := range objects {
		var b bytes.Buffer
		if err := encoder.Encode(obj, &b); err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut("/registry/"+key, b.String()))
		if len(ops) == atOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// stored are Services and their EndpointSlices, from the first to before the last.
func stored(first, last int) iter.Seq2[string, runtime.Object] {
	return func(yield func(string, runtime.Object) bool) {
		for i := first; i < last; i++ {
			svc, slice := apiObjects(i)
			at := svc.Namespace + "/" + svc.Name
			if !yield("services/specs/"+at, svc) || !yield("endpointslices/"+at, slice) {
				return
			}
		}
	}
}

// etcdClient is a way to an etcd in a cluster's namespace that has the cluster's certificates.
func etcdClient(c *lab.Cluster, endpoint string) (*clientv3.Client, error) {
	l, err := layout.New(c.Data)
	if err != nil {
		return nil, err
	}
	f := pki.Files{Dir: l.PKI()}
	tls, err := (transport.TLSInfo{CertFile: f.EtcdClient().Cert, KeyFile: f.EtcdClient().Key, TrustedCAFile: f.EtcdCA().Cert}).ClientConfig()
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, TLS: tls, DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return c.Dial(ctx, "tcp", strings.TrimPrefix(addr, "passthrough:///"))
		})},
	})
}

const apiNamespace = "bench"

func apiName(i int) string { return fmt.Sprint("service-", i) }

// apiUID is a Service's, which tells it from the others.
func apiUID(i int) types.UID { return types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i)) }

// apiObjects are a Service and its EndpointSlice as a Deployment's usually are, with what the API server and the controllers add.
func apiObjects(i int) (*corev1.Service, *discoveryv1.EndpointSlice) {
	s := benchService(i, netip.MustParseAddr(lab.NodeIP)) // the Service that is asked has ports of the node
	name, created := apiName(i), metav1.NewTime(time.Unix(1767225600, 0))
	policy, family := corev1.ServiceInternalTrafficPolicyCluster, corev1.IPFamilyPolicySingleStack
	labels := map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bench", "app.kubernetes.io/managed-by": "Helm"}
	managed := func(manager, fields string) []metav1.ManagedFieldsEntry {
		return []metav1.ManagedFieldsEntry{{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &created, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields)}}
	}
	svc := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: apiNamespace, Name: name, UID: apiUID(i), CreationTimestamp: created, Labels: labels,
			Annotations:   map[string]string{"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": apiNamespace},
			ManagedFields: managed("helm", `{"f:metadata":{"f:annotations":{".":{},"f:meta.helm.sh/release-name":{}},"f:labels":{".":{},"f:app.kubernetes.io/name":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:sessionAffinity":{},"f:type":{}}}`),
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: s.ClusterIP.Addr().String(), ClusterIPs: []string{s.ClusterIP.Addr().String()}, SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &family, InternalTrafficPolicy: &policy,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: servicePort, TargetPort: intstr.FromString("http")}},
		},
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: apiNamespace, Name: name, UID: "1" + apiUID(i)[1:], CreationTimestamp: created, Generation: 1,
			Labels:        map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "strake-bench", "app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "bench"},
			Annotations:   map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-01T00:00:00Z"},
			ManagedFields: managed("endpointslice-controller", `{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:labels":{".":{},"f:kubernetes.io/service-name":{}}},"f:ports":{}}`),
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{endpointPort(s.Endpoints[0].Port())},
	}
	for e, at := range s.Endpoints {
		slice.Endpoints = append(slice.Endpoints, endpoint(i, e, at, true))
		if i == 0 {
			break // one at a time answers for the Service that is asked
		}
	}
	return svc, slice
}

func endpointPort(number uint16) discoveryv1.EndpointPort {
	name, proto, port := "http", corev1.ProtocolTCP, int32(number)
	return discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port}
}

func endpoint(i, e int, at netip.AddrPort, ready bool) discoveryv1.Endpoint {
	node, zone, terminating := fmt.Sprint("node-", (i+e)%100), fmt.Sprint("zone-", (i+e)%3), false
	pod := fmt.Sprintf("%s-7d4b9c6f5d-%05d", apiName(i), e)
	return discoveryv1.Endpoint{
		Addresses: []string{at.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: &terminating}, NodeName: &node, Zone: &zone,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: apiNamespace, Name: pod, UID: "2" + apiUID(10*i + e)[1:]},
	}
}
