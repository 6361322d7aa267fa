package cni

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// Services are translated at a pod's sockets, so that its packets carry the backend's address from the first on. Some pods need the packets as
// they were meant: service meshes, which intercept them in the pod's namespace and route by the Service's address, and virtual machines, whose
// sockets are in a kernel of their own. What those send is translated where it leaves the pod.

// AnnotationSockets on a pod tells whether Services are translated at its sockets: "true" or "false". Without it, pods of Istio's sidecars and
// of KubeVirt are left alone.
const AnnotationSockets = "strake.io/socket-services"

// LeavesSockets tells whether a pod's sockets are to be left alone.
func LeavesSockets(pod metav1.Object) bool {
	switch pod.GetAnnotations()[AnnotationSockets] {
	case "false":
		return true
	case "true":
		return false
	}
	_, istio := pod.GetAnnotations()["sidecar.istio.io/status"] // written by the sidecar injector
	_, machine := pod.GetLabels()["kubevirt.io"]                // of virt-launcher pods
	return istio || machine
}

// switchSockets leaves the sockets of a pod alone, or not. Of a pod that is not known yet nothing is changed.
func (s *Server) switchSockets(a Allocation) error {
	if s.cfg.LeavesSockets == nil || a.Pod == "" || a.Netns == "" {
		return nil
	}
	off, known := s.cfg.LeavesSockets(a.Pod)
	if !known {
		return nil
	}
	var want []bpf.SocketsOff
	if off {
		cookie, err := s.cfg.Datapath.NetnsCookie(a.Netns)
		if err != nil {
			return fmt.Errorf("leave the sockets of pod %s alone: %w", a.Pod, err)
		}
		want = []bpf.SocketsOff{{Netns: cookie}}
	}
	_, err := s.cfg.Datapath.SocketsOff().Replace(socketsOwner(a.ContainerID), want)
	return err
}

// socketsOwner names a sandbox in the table of sockets that are left alone.
func socketsOwner(container string) string { return owner(container, "") }

// PodSeen looks again at a pod, named namespace/name, whose annotations or labels may have changed.
func (s *Server) PodSeen(pod string) {
	for _, a := range s.ipam.list() {
		if a.Pod != pod {
			continue
		}
		unlock := s.calls.lock(a.ContainerID)
		if _, ok := s.ipam.get(a.ContainerID, a.Ifname); ok {
			if err := s.switchSockets(a); err != nil {
				klog.ErrorS(err, "A pod's connections to Services may be translated where they should not")
			}
		}
		unlock()
	}
}
