package podworker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/env"
)

// Labels and annotations by which a restarted kubelet, and every CRI tool, knows what belongs to which pod.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
	annotationHash     = "io.kubernetes.container.hash"
	annotationRestarts = "io.kubernetes.container.restartCount"
)

// seccompDefault is the profile that the runtime brings.
const seccompDefault = runtimeapi.SecurityProfile_RuntimeDefault

func (w *worker) sandboxConfig(p *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	dns, err := w.k.Net.DNSConfig(p)
	if err != nil {
		return nil, err
	}
	host, err := w.k.Net.KernelHostname(p)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: string(p.UID)}
	for k, v := range p.Labels {
		labels[k] = v
	}
	logs := w.k.LogsOf(p)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, fmt.Errorf("log folder: %w", err)
	}
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: string(p.UID), Attempt: attempt},
		Hostname: host, LogDirectory: logs, DnsConfig: dns, Labels: labels, Annotations: p.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: w.k.Cgroups.PodPath(p), SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: namespaces(p), Seccomp: &runtimeapi.SecurityProfile{ProfileType: seccompDefault}, Privileged: privileged(p),
		}},
	}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort > 0 && !p.Spec.HostNetwork {
				cfg.PortMappings = append(cfg.PortMappings, &runtimeapi.PortMapping{Protocol: protocol(port.Protocol), ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP})
			}
		}
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		cfg.Linux.Sysctls = map[string]string{}
		for _, s := range sc.Sysctls {
			cfg.Linux.Sysctls[s.Name] = s.Value
		}
		cfg.Linux.SecurityContext.SupplementalGroups = groups(p)
		if sc.RunAsUser != nil {
			cfg.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: *sc.RunAsUser}
			// CRI wants a user with a group (CRI: LinuxSandboxSecurityContext.run_as_group).
			if sc.RunAsGroup != nil {
				cfg.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: *sc.RunAsGroup}
			}
		}
	}
	return cfg, nil
}

func protocol(p corev1.Protocol) runtimeapi.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return runtimeapi.Protocol_UDP
	case corev1.ProtocolSCTP:
		return runtimeapi.Protocol_SCTP
	}
	return runtimeapi.Protocol_TCP
}

func namespaces(p *corev1.Pod) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER, Ipc: runtimeapi.NamespaceMode_POD}
	if p.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

func privileged(p *corev1.Pod) bool {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			if c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged {
				return true
			}
		}
	}
	return false
}

func groups(p *corev1.Pod) []int64 {
	sc := p.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	out := append([]int64(nil), sc.SupplementalGroups...)
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	return out
}

// containerConfig makes what CRI needs to create one container.
func (w *worker) containerConfig(ctx context.Context, p *corev1.Pod, c *corev1.Container, image *runtimeapi.Image, o observed, restarts uint32, volumes map[string]string) (*runtimeapi.ContainerConfig, error) {
	podIPs := podIPs(p, o, w.k.HostIPs)
	vars, skipped, err := env.Make(p, c, env.Sources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			return w.k.Objects.ConfigMap(ctx, p.UID, p.Namespace, name)
		},
		Secret:   func(name string) (*corev1.Secret, error) { return w.k.Objects.Secret(ctx, p.UID, p.Namespace, name) },
		Services: w.k.Services(), PodIPs: podIPs, HostIPs: w.k.HostIPs, Node: w.k.Allocatable(),
	})
	if err != nil {
		return nil, err
	}
	if len(skipped) > 0 {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "InvalidEnvironmentVariableNames", "Keys [%s] were skipped since they are invalid environment variable names.", strings.Join(skipped, ", "))
	}
	values := map[string]string{}
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: restarts},
		Image:    &runtimeapi.ImageSpec{Image: image.Id, UserSpecifiedImage: c.Image},
		Labels:   map[string]string{labelPodName: p.Name, labelPodNamespace: p.Namespace, labelPodUID: string(p.UID), labelContainerName: c.Name},
		Annotations: map[string]string{
			annotationHash: containerHash(c), annotationRestarts: strconv.Itoa(int(restarts)),
		},
		WorkingDir: c.WorkingDir, Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		LogPath: filepath.Join(c.Name, strconv.Itoa(int(restarts))+".log"),
	}
	for _, v := range vars {
		values[v.Name] = v.Value
		cfg.Envs = append(cfg.Envs, &runtimeapi.KeyValue{Key: v.Name, Value: []byte(v.Value)})
	}
	for _, s := range c.Command {
		cfg.Command = append(cfg.Command, env.Expand(s, values))
	}
	for _, s := range c.Args {
		cfg.Args = append(cfg.Args, env.Expand(s, values))
	}
	if err := os.MkdirAll(filepath.Join(w.k.LogsOf(p), c.Name), 0o755); err != nil {
		return nil, fmt.Errorf("log folder: %w", err)
	}
	if cfg.Mounts, err = w.mounts(p, c, volumes, values, podIPs, restarts); err != nil {
		return nil, err
	}
	sc, err := securityContext(p, c, image)
	if err != nil {
		return nil, err
	}
	for _, e := range p.Spec.EphemeralContainers {
		if e.Name == c.Name && e.TargetContainerName != "" {
			target := o.current(e.TargetContainerName)
			if !running(target) {
				return nil, fmt.Errorf("unable to find target container %q", e.TargetContainerName)
			}
			sc.NamespaceOptions.Pid, sc.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, target.Id
		}
	}
	cfg.Linux = &runtimeapi.LinuxContainerConfig{Resources: w.k.Cgroups.ContainerResources(p, c), SecurityContext: sc}
	return cfg, nil
}

// mounts are the container's volumes, its hosts file and its termination message.
func (w *worker) mounts(p *corev1.Pod, c *corev1.Container, volumes, values map[string]string, podIPs []string, restarts uint32) (out []*runtimeapi.Mount, err error) {
	hosts := false
	for i, m := range c.VolumeMounts {
		path, ok := volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("mount %s: the pod has no volume %q", m.MountPath, m.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			if sub, err = env.ExpandAll(m.SubPathExpr, values); err != nil {
				return nil, fmt.Errorf("failed to expand subPathExpr of volumeMount %q: %w", m.Name, err)
			}
		}
		if sub != "" {
			// What is mounted is held open and bound to a place of ours: no link that a container makes meanwhile leads out.
			if path, err = w.k.Volumes.SubPath(p.UID, m.Name, path, sub, c.Name, i); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, c.Name, err)
			}
		}
		mount := &runtimeapi.Mount{HostPath: path, ContainerPath: m.MountPath, Readonly: m.ReadOnly || readOnly(p, m.Name)}
		if !filepath.IsAbs(mount.ContainerPath) {
			mount.ContainerPath = "/" + mount.ContainerPath
		}
		if m.MountPropagation != nil {
			switch *m.MountPropagation {
			case corev1.MountPropagationHostToContainer:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			case corev1.MountPropagationBidirectional:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}
		}
		hosts = hosts || m.MountPath == "/etc/hosts"
		out = append(out, mount)
	}
	dir := w.k.Volumes.PodDir(p.UID)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("pod folder: %w", err)
	}
	if !hosts {
		path, err := w.k.Net.HostsFile(p, podIPs, dir)
		if err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{HostPath: path, ContainerPath: "/etc/hosts"})
	}
	if c.TerminationMessagePath != "" {
		path := w.terminationLog(p, c.Name, restarts)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return nil, fmt.Errorf("termination message: %w", err)
		}
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			return nil, fmt.Errorf("termination message: %w", err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // any user of the container may write it
			return nil, fmt.Errorf("termination message: %w", err)
		}
		out = append(out, &runtimeapi.Mount{HostPath: path, ContainerPath: c.TerminationMessagePath})
	}
	return out, nil
}

// readOnly tells whether the pod has a claim's volume for reading only.
func readOnly(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == name && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
	})
}

func (w *worker) terminationLog(p *corev1.Pod, container string, restarts uint32) string {
	return filepath.Join(w.k.Volumes.PodDir(p.UID), "containers", container, strconv.Itoa(int(restarts)))
}

// securityContext merges the pod's and the container's, the container's going before.
func securityContext(p *corev1.Pod, c *corev1.Container, image *runtimeapi.Image) (*runtimeapi.LinuxContainerSecurityContext, error) {
	out := &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces(p), SupplementalGroups: groups(p), Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}}
	var user, group *int64
	var nonRoot *bool
	seccomp := func(s *corev1.SeccompProfile) {
		if s == nil {
			return
		}
		switch s.Type {
		case corev1.SeccompProfileTypeRuntimeDefault:
			out.Seccomp = &runtimeapi.SecurityProfile{ProfileType: seccompDefault}
		case corev1.SeccompProfileTypeUnconfined:
			out.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		case corev1.SeccompProfileTypeLocalhost:
			if s.LocalhostProfile != nil {
				out.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *s.LocalhostProfile}
			}
		}
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		user, group, nonRoot = sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot
		seccomp(sc.SeccompProfile)
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.RunAsUser != nil {
			user = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			group = sc.RunAsGroup
		}
		if sc.RunAsNonRoot != nil {
			nonRoot = sc.RunAsNonRoot
		}
		seccomp(sc.SeccompProfile)
		out.Privileged = sc.Privileged != nil && *sc.Privileged
		out.ReadonlyRootfs = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
		out.NoNewPrivs = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		if sc.Capabilities != nil {
			out.Capabilities = &runtimeapi.Capability{}
			for _, x := range sc.Capabilities.Add {
				out.Capabilities.AddCapabilities = append(out.Capabilities.AddCapabilities, string(x))
			}
			for _, x := range sc.Capabilities.Drop {
				out.Capabilities.DropCapabilities = append(out.Capabilities.DropCapabilities, string(x))
			}
		}
	}
	if user == nil && image.Uid != nil {
		v := image.Uid.Value
		user = &v
	}
	if user != nil {
		out.RunAsUser = &runtimeapi.Int64Value{Value: *user}
	} else if image.Username != "" {
		out.RunAsUsername = image.Username
	}
	if group != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *group}
		if out.RunAsUser == nil && out.RunAsUsername == "" {
			out.RunAsUser = &runtimeapi.Int64Value{} // CRI: a group goes with a user
		}
	}
	if nonRoot != nil && *nonRoot {
		switch {
		case user != nil && *user == 0, user == nil && image.Username == "":
			return nil, fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", p.Namespace+"/"+p.Name, c.Name)
		case user == nil:
			return nil, fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", image.Username, p.Namespace+"/"+p.Name, c.Name)
		}
	}
	if !out.Privileged {
		out.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
		out.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	return out, nil
}
