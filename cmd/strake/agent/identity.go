package agent

import (
	"context"
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/kubelet/certificates"
)

// identity is who the node is to the API server, and to those that call its kubelet.
type identity struct {
	*certificates.Node
	kubelet, network *rest.Config
}

// identity opens the node's certificates. If only that of the network is missing or has expired, the kubelet's is enough to get another.
func (c Config) identity(ctx context.Context) (identity, error) {
	if err := certificates.Bootstrap(ctx, c.Certificates); err != nil {
		return identity{}, err
	}
	n, err := certificates.Open(c.Certificates)
	if err != nil {
		return identity{}, err
	}
	id := identity{Node: n, kubelet: n.Kubelet(), network: n.Network()}
	for rc, agent := range map[*rest.Config]string{id.kubelet: "kubelet", id.network: "strake-node-network"} {
		rc.QPS, rc.Burst, rc.UserAgent = -1, -1, agent
	}
	id.network.ContentType = "application/vnd.kubernetes.protobuf"
	id.network.DisableCompression = true // what the first lists wait for is the server's processor, not the wire
	return id, nil
}

func (id identity) networkClient() (kubernetes.Interface, error) {
	c, err := kubernetes.NewForConfig(id.network)
	if err != nil {
		return nil, fmt.Errorf("node network: %w", err)
	}
	return c, nil
}
