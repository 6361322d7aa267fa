// Command kubelet runs a node's kubelet and nothing of its network, beside `strake server` and `strake containerd` of the same data folder.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/kubelet"
	"github.com/strake-io/strake/kubelet/certificates"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: kubelet DATA-FOLDER STRAKE-CNI")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the kubelet of the node whose data folder it is. pause is the program that holds pods' namespaces.
func run(ctx context.Context, data, pause string) error {
	l, s, err := cluster.Open(func() (layout.Layout, error) { return layout.New(data) }, "agent")
	if err != nil {
		return err
	}
	cfg := s.Agent(l)
	node, err := certificates.Open(cfg.Certificates)
	if err != nil {
		return err
	}
	runtime, err := containerd.Connect(ctx, l)
	if err != nil {
		return err
	}
	defer runtime.Close()
	if err := agent.LoadImage(ctx, runtime, ociimage.Image{Name: containerd.PauseImage, Files: map[string]string{"/pause": pause}, Entrypoint: []string{"/pause"}}); err != nil {
		return err
	}
	return kubelet.Run(ctx, kubelet.Config{
		NodeName: cfg.NodeName, NodeIPs: cfg.NodeAddrs, Port: agent.KubeletPort, Client: node.Kubelet(), CRISocket: l.ContainerdSocket(),
		RootDir: l.Kubelet(), PodLogsDir: l.PodLogs(), Cgroup: l.Cgroup(), ClusterDomain: cfg.Zone, ResolvConf: cfg.ResolvConf,
		Certificate: node.ServingCertificate, ClientCAFile: cfg.Certificates.CAFile,
	})
}
