package podworker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI is a container runtime whose containers do what the test says.
type fakeCRI struct {
	cri.RuntimeService
	mu         sync.Mutex
	seq        int
	boxes      map[string]*runtimeapi.PodSandboxStatus
	containers map[string]*fakeContainer
	calls      []string // what changes something, in order
	events     chan string
	// Settings, by container name.
	stopTakes map[string]time.Duration // after the signal; more than the grace: it is killed
	exec      func(container string, cmd []string) error
	startFail map[string]error
	fault     string // the name of a call that fails
	used      uint64 // bytes of memory, by each container
	onUpdate  func()
}

type fakeContainer struct {
	runtimeapi.ContainerStatus
	box string
	cfg *runtimeapi.ContainerConfig
}

func newFakeCRI() *fakeCRI {
	return &fakeCRI{
		boxes: map[string]*runtimeapi.PodSandboxStatus{}, containers: map[string]*fakeContainer{}, events: make(chan string, 100),
		stopTakes: map[string]time.Duration{}, startFail: map[string]error{},
	}
}

func (f *fakeCRI) called(format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	f.calls = append(f.calls, call)
	if f.fault != "" && len(call) >= len(f.fault) && call[:len(f.fault)] == f.fault {
		return errors.New("fault of " + call)
	}
	return nil
}

// stamp gives each event a time of its own.
func (f *fakeCRI) stamp() int64 { f.seq++; return time.Now().UnixNano() + int64(f.seq) }

func (f *fakeCRI) RunPodSandbox(_ context.Context, cfg *runtimeapi.PodSandboxConfig, _ string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("sandbox %d", cfg.Metadata.Attempt); err != nil {
		return "", err
	}
	now := f.stamp()
	id := fmt.Sprintf("box-%s-%d", cfg.Metadata.Uid, cfg.Metadata.Attempt)
	f.boxes[id] = &runtimeapi.PodSandboxStatus{Id: id, Metadata: cfg.Metadata, Labels: cfg.Labels, CreatedAt: now, State: runtimeapi.PodSandboxState_SANDBOX_READY, Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.7"}}
	return id, nil
}

func (f *fakeCRI) StopPodSandbox(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[id]; b != nil && b.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		if err := f.called("stop-sandbox %d", b.Metadata.Attempt); err != nil {
			return err
		}
	}
	f.endBox(id)
	return nil
}

func (f *fakeCRI) endBox(id string) {
	if b := f.boxes[id]; b != nil {
		b.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	for _, c := range f.containers {
		if c.box == id {
			f.end(c, 137)
		}
	}
}

// killSandbox has a sandbox die by itself.
func (f *fakeCRI) killSandbox(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endBox(id)
	f.events <- id
}

func (f *fakeCRI) RemovePodSandbox(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[id]; b != nil {
		f.calls = append(f.calls, fmt.Sprintf("remove-sandbox %d", b.Metadata.Attempt))
	}
	delete(f.boxes, id)
	for cid, c := range f.containers {
		if c.box == id {
			delete(f.containers, cid)
		}
	}
	return nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, id string, _ bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[id]
	if b == nil {
		return nil, errors.New("no sandbox " + id)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: clone(b)}, nil
}

func (f *fakeCRI) ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var out []*runtimeapi.PodSandbox
	for _, b := range f.boxes {
		if matches(filter.GetLabelSelector(), b.Labels) {
			out = append(out, &runtimeapi.PodSandbox{Id: b.Id, Metadata: b.Metadata, State: b.State, Labels: b.Labels, CreatedAt: b.CreatedAt})
		}
	}
	return out, nil
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (f *fakeCRI) CreateContainer(_ context.Context, box string, cfg *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.called("create %s/%d", cfg.Metadata.Name, cfg.Metadata.Attempt); err != nil {
		return "", err
	}
	now := f.stamp()
	id := fmt.Sprintf("%s-%d-%d", cfg.Metadata.Name, cfg.Metadata.Attempt, f.seq)
	c := &fakeContainer{box: box, cfg: cfg}
	c.ContainerStatus = runtimeapi.ContainerStatus{Id: id, Metadata: cfg.Metadata, Labels: cfg.Labels, Annotations: cfg.Annotations, CreatedAt: now, State: runtimeapi.ContainerState_CONTAINER_CREATED, Image: cfg.Image, ImageRef: cfg.Image.Image}
	f.containers[id] = c
	return id, nil
}

func (f *fakeCRI) StartContainer(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	name := c.Metadata.Name
	if err := f.called("start %s", name); err != nil {
		return err
	}
	c.StartedAt = f.stamp()
	c.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	if err := f.startFail[name]; err != nil {
		f.end(c, 128)
		c.StartedAt = 0
		c.Reason, c.Message = "StartError", err.Error()
		return err
	}
	return nil
}

// UpdateContainerResources tells of CPU in thousandths and of memory in Mi.
func (f *fakeCRI) UpdateContainerResources(_ context.Context, id string, r *runtimeapi.ContainerResources) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onUpdate != nil {
		f.onUpdate()
	}
	return f.called("update %s %d %d", f.containers[id].Metadata.Name, r.Linux.CpuQuota/100, r.Linux.MemoryLimitInBytes>>20)
}

func (f *fakeCRI) ContainerStats(context.Context, string) (*runtimeapi.ContainerStats, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ContainerStats{Memory: &runtimeapi.MemoryUsage{UsageBytes: &runtimeapi.UInt64Value{Value: f.used}}}, nil
}

func (f *fakeCRI) end(c *fakeContainer, code int32) {
	if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		c.State, c.ExitCode, c.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, code, f.stamp()
	}
}

// exit has a running container end by itself. It tells whether there was one.
func (f *fakeCRI) exit(name string, code int32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.containers {
		if c.Metadata.Name == name && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			f.end(c, code)
			f.events <- id
			return true
		}
	}
	return false
}

func (f *fakeCRI) StopContainer(ctx context.Context, id string, timeout int64) error {
	f.mu.Lock()
	c := f.containers[id]
	name := c.Metadata.Name
	err := f.called("stop %s %ds", name, timeout)
	takes := f.stopTakes[name]
	f.mu.Unlock()
	if err != nil {
		return err
	}
	code := int32(0)
	if grace := time.Duration(timeout) * time.Second; takes > grace {
		takes, code = grace, 137
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(takes):
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end(c, code)
	f.calls = append(f.calls, "stopped "+name)
	return nil
}

func (f *fakeCRI) RemoveContainer(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		f.calls = append(f.calls, fmt.Sprintf("remove %s/%d", c.Metadata.Name, c.Metadata.Attempt))
	}
	delete(f.containers, id)
	return nil
}

func (f *fakeCRI) ListContainers(_ context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*runtimeapi.Container
	for _, c := range f.containers {
		if matches(filter.GetLabelSelector(), c.Labels) {
			out = append(out, &runtimeapi.Container{Id: c.Id, PodSandboxId: c.box, Metadata: c.Metadata, State: c.State, Labels: c.Labels, CreatedAt: c.CreatedAt})
		}
	}
	return out, nil
}

func (f *fakeCRI) ContainerStatus(_ context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[id]
	if c == nil {
		return nil, errors.New("no container " + id)
	}
	return &runtimeapi.ContainerStatusResponse{Status: clone(&c.ContainerStatus)}, nil
}

func (f *fakeCRI) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, []byte, error) {
	f.mu.Lock()
	c, exec := f.containers[id], f.exec
	f.mu.Unlock()
	if c == nil {
		return nil, nil, errors.New("no container " + id)
	}
	if exec == nil {
		return nil, nil, nil
	}
	done := make(chan error, 1)
	go func() { done <- exec(c.Metadata.Name, cmd) }()
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case err := <-done:
		return nil, nil, err
	}
}

func (f *fakeCRI) GetContainerEvents(ctx context.Context, ch chan *runtimeapi.ContainerEventResponse, _ func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case id := <-f.events:
			ch <- &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}
		}
	}
}

// history is what was done so far.
func (f *fakeCRI) history() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func clone[T any](v *T) *T { c := *v; return &c }

// fakeImages has the image "have"; all others fail to be pulled, until the test puts them there.
type fakeImages struct {
	cri.ImageManagerService
	mu    sync.Mutex
	have  map[string]*runtimeapi.Image
	pulls int
	takes time.Duration // a pull
}

func (f *fakeImages) ImageStatus(_ context.Context, spec *runtimeapi.ImageSpec, _ bool) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ImageStatusResponse{Image: f.have[spec.Image]}, nil
}

func (f *fakeImages) PullImage(ctx context.Context, _ *runtimeapi.ImageSpec, _ *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	f.mu.Lock()
	f.pulls++
	takes := f.takes
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(takes):
	}
	return "", errors.New("no such registry")
}
