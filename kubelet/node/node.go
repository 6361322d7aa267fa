// Package node registers this machine as a Node and keeps its status and its
// Lease: what it has, how it is, and that it lives.
package node

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/version"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

const (
	leaseSeconds = 40
	renewEvery   = 10 * time.Second
	checkEvery   = 10 * time.Second
	reportEvery  = 5 * time.Minute
	// eager is how often the runtime is asked until the node is Ready for the first time.
	eager = 100 * time.Millisecond
	// Part of the memory that is kept for the system.
	reservedMemory = 100 << 20
)

// Config says what to register.
type Config struct {
	Name   string
	IPs    []string // the primary family's first
	Port   int
	Labels map[string]string
	// Annotations that the node has beside others'.
	Annotations map[string]string
	MaxPods     int64
	RootDir     string // whose file system is the node's ephemeral storage
	Client      kubernetes.Interface
	Runtime     cri.RuntimeService
	// Pressure tells whether the node is short of what a condition means, and how short.
	Pressure func(corev1.NodeConditionType) (detail string, short bool)
	// Changed has the status reported at once.
	Changed <-chan struct{}
}

// Machine is what does not change while the kubelet runs.
type Machine struct {
	RuntimeName string // the container runtime's own, such as containerd
	Info        corev1.NodeSystemInfo
	Capacity    corev1.ResourceList
	Allocatable corev1.ResourceList
}

// Inspect reads the machine's facts.
func Inspect(ctx context.Context, cfg Config) (Machine, error) {
	var m Machine
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("uname: %w", err)
	}
	m.Info = corev1.NodeSystemInfo{
		MachineID: readLine("/etc/machine-id"), BootID: readLine("/proc/sys/kernel/random/boot_id"), SystemUUID: readLine("/sys/class/dmi/id/product_uuid"),
		KernelVersion: unix.ByteSliceToString(u.Release[:]), OSImage: osImage(), OperatingSystem: "linux", Architecture: runtime.GOARCH,
		KubeletVersion: version.Get().GitVersion,
	}
	if m.Info.SystemUUID == "" {
		m.Info.SystemUUID = m.Info.MachineID
	}
	if v, err := cfg.Runtime.Version(ctx, ""); err == nil {
		m.RuntimeName, m.Info.ContainerRuntimeVersion = v.RuntimeName, v.RuntimeName+"://"+v.RuntimeVersion
	}
	memory, err := MemoryBytes()
	if err != nil {
		return m, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.RootDir, &fs); err != nil {
		return m, fmt.Errorf("size of the disk of %s: %w", cfg.RootDir, err)
	}
	disk := int64(fs.Blocks) * fs.Bsize
	m.Capacity = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memory, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(cfg.MaxPods, resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(disk, resource.BinarySI),
	}
	m.Allocatable = m.Capacity.DeepCopy()
	m.Allocatable[corev1.ResourceMemory] = *resource.NewQuantity(max(memory-reservedMemory, 0), resource.BinarySI)
	m.Allocatable[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(disk*9/10, resource.BinarySI)
	return m, nil
}

// BootTime is when the machine started.
func BootTime() time.Time {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return time.Time{} // it can't fail with a valid pointer
	}
	return time.Now().Add(-time.Duration(info.Uptime) * time.Second).Truncate(time.Second)
}

// MemoryBytes is the machine's memory.
func MemoryBytes() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var kb int64
		if _, err := fmt.Sscanf(sc.Text(), "MemTotal: %d kB", &kb); err == nil {
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("memory: no MemTotal in /proc/meminfo")
}

func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func osImage() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

// Run registers the node and speaks for it until ctx ends.
func Run(ctx context.Context, cfg Config, m Machine) error {
	n, err := register(ctx, cfg, m)
	if err != nil {
		return err
	}
	go func() {
		for ctx.Err() == nil {
			pause := renewEvery
			if err := renew(ctx, cfg); err != nil {
				pause = time.Second
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	var reported time.Time
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		case <-cfg.Changed:
		}
		status, err := cfg.Runtime.Status(ctx, false)
		if n, err = report(ctx, cfg, m, status.GetStatus(), err, &reported); err != nil && ctx.Err() == nil {
			klog.V(2).InfoS("Node status was not written, trying again", "err", err)
		}
		wait = checkEvery
		if n == nil || !ready(n) || err != nil {
			wait = eager
		}
	}
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// register makes the Node, or brings its labels and annotations up to date.
func register(ctx context.Context, cfg Config, m Machine) (*corev1.Node, error) {
	labels := map[string]string{
		corev1.LabelHostname: cfg.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": runtime.GOARCH,
	}
	for k, v := range cfg.Labels {
		labels[k] = v
	}
	for {
		n, err := cfg.Client.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: cfg.Name, Labels: labels, Annotations: cfg.Annotations},
			Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			n, err = cfg.Client.CoreV1().Nodes().Get(ctx, cfg.Name, metav1.GetOptions{})
			if err == nil {
				want := n.DeepCopy()
				if want.Labels == nil {
					want.Labels = map[string]string{}
				}
				for k, v := range labels {
					want.Labels[k] = v
				}
				for k, v := range cfg.Annotations {
					metav1.SetMetaDataAnnotation(&want.ObjectMeta, k, v)
				}
				if !apiequality.Semantic.DeepEqual(n, want) {
					n, err = cfg.Client.CoreV1().Nodes().Update(ctx, want, metav1.UpdateOptions{})
				}
			}
		}
		if err == nil {
			return n, nil
		}
		klog.V(2).InfoS("Node is not registered yet, trying again", "node", cfg.Name, "err", err)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("register node %s: %w (last error: %w)", cfg.Name, ctx.Err(), err)
		case <-time.After(eager):
		}
	}
}

// report writes the status if it changed, or has not been written for long.
func report(ctx context.Context, cfg Config, m Machine, rt *runtimeapi.RuntimeStatus, rtErr error, reported *time.Time) (*corev1.Node, error) {
	n, err := cfg.Client.CoreV1().Nodes().Get(ctx, cfg.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if n, err = register(ctx, cfg, m); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	s := n.Status.DeepCopy()
	s.Capacity, s.Allocatable, s.NodeInfo = m.Capacity, m.Allocatable, m.Info
	s.Addresses = nil
	for _, ip := range cfg.IPs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: cfg.Name})
	s.DaemonEndpoints.KubeletEndpoint.Port = int32(cfg.Port)
	s.Conditions = conditions(n.Status.Conditions, checks(cfg, rt, rtErr), now)
	if apiequality.Semantic.DeepEqual(withoutBeat(n.Status), withoutBeat(*s)) && time.Since(*reported) < reportEvery {
		return n, nil
	}
	n.Status = *s
	updated, err := cfg.Client.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	*reported = time.Now()
	return updated, nil
}

// withoutBeat is a status without the times that change by themselves.
func withoutBeat(s corev1.NodeStatus) corev1.NodeStatus {
	s = *s.DeepCopy()
	for i := range s.Conditions {
		s.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return s
}

type check struct {
	kind            corev1.NodeConditionType
	status          corev1.ConditionStatus
	reason, message string
}

// checks looks at the node.
func checks(cfg Config, rt *runtimeapi.RuntimeStatus, rtErr error) []check {
	out := []check{
		{corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
		{corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"},
		{corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"},
	}
	bad := map[corev1.NodeConditionType][2]string{
		corev1.NodeMemoryPressure: {"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"},
		corev1.NodeDiskPressure:   {"KubeletHasDiskPressure", "kubelet has disk pressure"},
		corev1.NodePIDPressure:    {"KubeletHasInsufficientPID", "kubelet has insufficient PID available"},
	}
	for i, c := range out {
		if detail, short := cfg.Pressure(c.kind); short {
			out[i] = check{c.kind, corev1.ConditionTrue, bad[c.kind][0], bad[c.kind][1] + ": " + detail}
		}
	}
	ready := check{corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"}
	var problems []string
	if rtErr != nil {
		problems = append(problems, "container runtime is down: "+rtErr.Error())
	} else {
		for _, c := range rt.GetConditions() {
			if !c.Status {
				problems = append(problems, fmt.Sprintf("container runtime %s: %s: %s", c.Type, c.Reason, c.Message))
			}
		}
	}
	if len(problems) > 0 {
		ready = check{corev1.NodeReady, corev1.ConditionFalse, "KubeletNotReady", strings.Join(problems, "; ")}
	}
	return append(out, ready)
}

func conditions(have []corev1.NodeCondition, want []check, now metav1.Time) []corev1.NodeCondition {
	out := append([]corev1.NodeCondition(nil), have...)
next:
	for _, w := range want {
		c := corev1.NodeCondition{Type: w.kind, Status: w.status, Reason: w.reason, Message: w.message, LastHeartbeatTime: now, LastTransitionTime: now}
		for i := range out {
			if out[i].Type == w.kind {
				if out[i].Status == w.status {
					c.LastTransitionTime = out[i].LastTransitionTime
				}
				out[i] = c
				continue next
			}
		}
		out = append(out, c)
	}
	return out
}

// renew keeps the node's Lease, the sign that it lives. It belongs to the Node as that is now: one that was deleted and
// made anew is another, and what belonged to the first goes with it.
func renew(ctx context.Context, cfg Config) error {
	leases := cfg.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(leaseSeconds)
	l, err := leases.Get(ctx, cfg.Name, metav1.GetOptions{})
	if err == nil {
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &cfg.Name, &seconds, &now
		_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	n, err := cfg.Client.CoreV1().Nodes().Get(ctx, cfg.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	_, err = leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: cfg.Name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &cfg.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}, metav1.CreateOptions{})
	return err
}
