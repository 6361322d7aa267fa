package cni

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strake-io/strake/cni/plugin"
)

// Guard judges the packets of pods. Nothing passes from or to an address that it has not let in.
type Guard interface {
	// Admit returns when packets are judged as the pod's policies want it, or an error if that can't be had before ctx ends.
	Admit(ctx context.Context, a Allocation) error
	// Release forgets an attachment. It does not wait: a pod that gets the address afterwards is admitted anew.
	Release(a Allocation)
}

// admitTimeout bounds how long an ADD waits for a pod's verdicts: less than the plugin waits for the agent.
const admitTimeout = 45 * time.Second

// admit makes the verdicts on a pod's packets live.
func (s *Server) admit(ctx context.Context, a Allocation) error {
	if s.cfg.Guard == nil {
		return nil
	}
	if err := s.cfg.Guard.Admit(ctx, a); err != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("the network policies of pod %s are not in force: %v", a.Pod, err), "a pod runs only once its policies are; is the API server up, and `strake doctor` well?")
	}
	return nil
}

// Attachments are what the pods of the node hold.
func (s *Server) Attachments() []Allocation { return s.ipam.list() }

// podOf is namespace/name of the pod that a call is for (CNI_ARGS of the kubelet's runtimes), or empty, and its UID where the runtime tells it.
func podOf(r plugin.Request) (pod, uid string) {
	var namespace, name string
	for arg := range strings.SplitSeq(r.Args, ";") {
		switch k, v, _ := strings.Cut(arg, "="); k {
		case "K8S_POD_NAMESPACE":
			namespace = v
		case "K8S_POD_NAME":
			name = v
		case "K8S_POD_UID":
			uid = v
		}
	}
	if namespace == "" || name == "" {
		return "", ""
	}
	return namespace + "/" + name, uid
}
