package podworker

import (
	"context"
	"encoding/json"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/kubelet/objects"
	"github.com/strake-io/strake/kubelet/podnet"
	"github.com/strake-io/strake/kubelet/prober"
	"github.com/strake-io/strake/kubelet/volumes"
)

// Pods is the set of this node's workers, with all that they use.
type Pods struct {
	Client      kubernetes.Interface
	RuntimeName string // by which container ids are prefixed, such as containerd
	Runtime     cri.RuntimeService
	Images      cri.ImageManagerService
	Endpoint    string // the runtime's, such as unix:///run/containerd/containerd.sock
	Recorder    record.EventRecorder
	Volumes     *volumes.Manager
	Cgroups     *cgroups.Manager
	Net         podnet.Config
	Objects     *objects.Cache
	Services    func() []*corev1.Service
	Allocatable func() corev1.ResourceList
	HostIPs     []string // of the node, the primary family's first
	LogsDir     string
	// Admit tells whether a pod that has nothing yet may start; if not, why. nil: all may.
	Admit func(*corev1.Pod) (message string, ok bool)

	prober *prober.Manager

	granting   sync.Mutex // held by the worker that gives its pod of the node's resources
	mu         sync.Mutex
	unanswered time.Time // since when the runtime does not answer; zero: it does
	workers    map[types.UID]*worker
	wg         sync.WaitGroup
	ctx        context.Context
}

// Run serves the workers until ctx ends. Containers go on running then.
func (k *Pods) Run(ctx context.Context) {
	k.mu.Lock()
	k.ctx = ctx
	k.mu.Unlock()
	k.watchRuntime(ctx)
	k.wg.Wait()
}

// Init must be called before Set.
func (k *Pods) Init(ctx context.Context) {
	k.workers = map[types.UID]*worker{}
	k.ctx = ctx
	k.prober = prober.New(k.execProbe, k.probed)
}

// Probes are the figures of probes.
func (k *Pods) Probes() prometheus.Collector { return k.prober }

// Set tells of a pod of this node, new or changed.
func (k *Pods) Set(p *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.workers[p.UID]
	if w == nil {
		w = &worker{k: k, uid: p.UID, wake: make(chan struct{}, 1), backoffs: map[string]*backoff{}, pulls: map[string]*pullBackoff{}, waiting: map[string]waiting{}, unhealthy: map[string]string{}}
		k.workers[p.UID] = w
		w.set(p)
		k.wg.Go(func() {
			w.run(k.ctx)
			k.mu.Lock()
			delete(k.workers, p.UID)
			k.mu.Unlock()
		})
		return
	}
	w.set(p)
}

// Gone tells that a pod's object no longer exists: what is left of it is removed.
func (k *Pods) Gone(p *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.workers[p.UID]; w != nil {
		w.gone()
	}
}

// Wake has workers look at their pods.
func (k *Pods) Wake(uids ...types.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, uid := range uids {
		if w := k.workers[uid]; w != nil {
			w.poke()
		}
	}
}

// Get returns a pod by namespace and name.
func (k *Pods) Get(namespace, name string) (*corev1.Pod, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range k.workers {
		if p := w.pod(); p.Namespace == namespace && p.Name == name {
			return p, true
		}
	}
	return nil, false
}

// List returns all pods of this node.
func (k *Pods) List() []*corev1.Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(k.workers))
	for _, w := range k.workers {
		out = append(out, w.pod())
	}
	return out
}

// granted returns all pods of this node, asking for what they are given.
func (k *Pods) granted() []*corev1.Pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(k.workers))
	for _, w := range k.workers {
		w.mu.Lock()
		out = append(out, withResources(w.current, w.granted))
		w.mu.Unlock()
	}
	return out
}

// ContainerID finds the newest container of a pod by name; previous, the one before it.
func (k *Pods) ContainerID(ctx context.Context, p *corev1.Pod, name string, previous bool) (*runtimeapi.ContainerStatus, bool) {
	o, err := k.observe(ctx, p.UID)
	if err != nil {
		return nil, false
	}
	s := o.current(name)
	switch {
	case s == nil:
		s = o.former[name]
		if previous {
			s = nil
		}
	case previous:
		s = o.previous(name)
	}
	return s, s != nil
}

// SandboxID finds the pod's sandbox.
func (k *Pods) SandboxID(ctx context.Context, uid types.UID) (string, bool) {
	o, err := k.observe(ctx, uid)
	if err != nil || !o.sandboxReady() {
		return "", false
	}
	return o.sandbox.Id, true
}

// classesEvery is how often the parts of the CPU that classes of pods have are set anew.
const classesEvery = 10 * time.Second

// KeepClasses gives the classes of pods their parts of the CPU, until ctx ends.
func (k *Pods) KeepClasses(ctx context.Context) {
	t := time.NewTicker(classesEvery)
	defer t.Stop()
	for {
		if err := k.Cgroups.EnsureClasses(k.List()); err != nil {
			klog.ErrorS(err, "The classes of pods have not their parts of the CPU")
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Evict ends a pod for good because the node is short of something.
func (k *Pods) Evict(p *corev1.Pod, message string) {
	k.mu.Lock()
	w := k.workers[p.UID]
	k.mu.Unlock()
	if w == nil || w.failure() != nil {
		return
	}
	k.Recorder.Event(p, corev1.EventTypeWarning, "Evicted", message)
	w.fail(evicted(message))
}

func evicted(message string) failure {
	return failure{reason: "Evicted", message: message, condition: &corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: message,
	}}
}

// LogsOf is the folder of a pod's logs.
func (k *Pods) LogsOf(p *corev1.Pod) string {
	return filepath.Join(k.LogsDir, p.Namespace+"_"+p.Name+"_"+string(p.UID))
}

// SandboxPID finds the process that holds the pod's network namespace.
func (k *Pods) SandboxPID(ctx context.Context, p *corev1.Pod) (int, bool) {
	id, ok := k.SandboxID(ctx, p.UID)
	if !ok {
		return 0, false
	}
	resp, err := k.Runtime.PodSandboxStatus(ctx, id, true)
	if err != nil {
		return 0, false
	}
	var info struct{ PID int }
	if json.Unmarshal([]byte(resp.GetInfo()["info"]), &info) != nil || info.PID <= 0 {
		return 0, false
	}
	return info.PID, true
}

func (k *Pods) execProbe(ctx context.Context, id string, cmd []string, timeout time.Duration) (string, error) {
	out, errOut, err := k.Runtime.ExecSync(ctx, id, cmd, timeout)
	return string(out) + string(errOut), err
}

func (k *Pods) probed(r prober.Result) {
	k.mu.Lock()
	w := k.workers[r.Pod]
	k.mu.Unlock()
	if w == nil {
		return
	}
	if !r.OK {
		k.Recorder.Eventf(w.pod(), corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", r.Kind, r.Message)
	}
	if !r.Settled {
		return
	}
	if !r.OK && r.Kind != prober.Readiness {
		w.markUnhealthy(r.ID, "Container "+r.Container+" failed "+lower(r.Kind)+" probe, will be restarted")
	}
	w.poke()
}

func lower(k prober.Kind) string {
	if k == prober.Liveness {
		return "liveness"
	}
	return "startup"
}

// RemoveOrphans removes what is left of pods that are not among uids: sandboxes, folders, cgroups.
func (k *Pods) RemoveOrphans(ctx context.Context, uids map[types.UID]bool) error {
	boxes, err := k.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	left := map[types.UID]bool{}
	for _, b := range boxes {
		if uid := types.UID(b.Labels[labelPodUID]); !uids[uid] {
			left[uid] = true
		}
	}
	for _, list := range [][]types.UID{k.Volumes.Pods(), k.Cgroups.Pods()} {
		for _, uid := range list {
			if !uids[uid] {
				left[uid] = true
			}
		}
	}
	for uid := range left {
		if err := k.cleanUp(ctx, uid); err != nil {
			return err
		}
	}
	return nil
}
