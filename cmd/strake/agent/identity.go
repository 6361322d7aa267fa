package agent

import (
	"context"
	"crypto/tls"
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/kubelet/certificates"
)

// identity is who the node is to the API server, and to those that call its kubelet.
type identity struct {
	kubelet, network *rest.Config
	serving          func(*tls.ClientHelloInfo) (*tls.Certificate, error) // nil: the files of the configuration
	keep             func(context.Context) error                          // renews it until the context ends
}

func (c Config) identity() (identity, error) {
	var id identity
	if c.Certificates != nil {
		own, err := certificates.Open(*c.Certificates)
		if err != nil {
			return id, err
		}
		id = identity{kubelet: rest.CopyConfig(own.Kubelet()), network: rest.CopyConfig(own.Network()), serving: own.ServingCertificate, keep: own.Run}
	} else {
		id.keep = func(context.Context) error { return nil } // `strake server` renews them
		var err error
		if id.kubelet, err = clientcmd.BuildConfigFromFlags("", c.KubeletKubeconfig); err != nil {
			return id, fmt.Errorf("kubelet: kubeconfig %s: %w", c.KubeletKubeconfig, err)
		}
		if id.network, err = clientcmd.BuildConfigFromFlags("", c.NetworkKubeconfig); err != nil {
			return id, fmt.Errorf("node network: kubeconfig %s: %w", c.NetworkKubeconfig, err)
		}
	}
	for rc, agent := range map[*rest.Config]string{id.kubelet: "kubelet", id.network: "strake-node-network"} {
		rc.QPS, rc.Burst, rc.UserAgent = -1, -1, agent
	}
	id.network.ContentType = "application/vnd.kubernetes.protobuf"
	return id, nil
}

func (id identity) networkClient() (kubernetes.Interface, error) {
	c, err := kubernetes.NewForConfig(id.network)
	if err != nil {
		return nil, fmt.Errorf("node network: %w", err)
	}
	return c, nil
}
