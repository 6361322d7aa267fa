package podworker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/kubelet/objects"
	"github.com/strake-io/strake/kubelet/podnet"
	"github.com/strake-io/strake/kubelet/volumes"
)

// lab is a kubelet between a fake runtime and a fake API, in the time of a synctest bubble.
type lab struct {
	t      *testing.T
	cri    *fakeCRI
	images *fakeImages
	client *fake.Clientset
	dir    string
	group  string // cgroup
	events *eventLog

	k    *Pods
	stop func()

	mu   sync.Mutex
	pods map[types.UID]*corev1.Pod
	rv   int
}

type eventLog struct {
	mu  sync.Mutex
	all []string
}

func (e *eventLog) Event(_ runtime.Object, kind, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, kind+" "+reason+" "+message)
}

func (e *eventLog) Eventf(obj runtime.Object, kind, reason, format string, args ...any) {
	e.Event(obj, kind, reason, fmt.Sprintf(format, args...))
}

func (e *eventLog) AnnotatedEventf(obj runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	e.Eventf(obj, kind, reason, format, args...)
}

func (e *eventLog) has(text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.all, func(s string) bool { return strings.Contains(s, text) })
}

// inLab runs a test in a bubble with a kubelet.
func inLab(t *testing.T, f func(*lab)) {
	if os.Getuid() != 0 {
		t.Fatal("needs root: pods have cgroups and mounts")
	}
	dir := t.TempDir()
	group := fmt.Sprintf("/strake-test-%d-%d", os.Getpid(), labs())
	t.Cleanup(func() {
		if err := cgroups.New(group, 1<<30).RemoveAll(); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l := &lab{t: t, cri: newFakeCRI(), images: &fakeImages{have: map[string]*runtimeapi.Image{"have": {Id: "sha256:1", Username: ""}}}, client: fake.NewClientset(), dir: dir, group: group, events: &eventLog{}, pods: map[types.UID]*corev1.Pod{}}
		l.client.PrependReactor("patch", "pods", l.patched)
		l.client.PrependReactor("delete", "pods", l.removed)
		l.start()
		defer func() {
			l.stop()
			for uid := range l.pods {
				if err := l.k.Volumes.Teardown(uid); err != nil {
					t.Error(err)
				}
			}
		}()
		f(l)
	})
}

var labCount struct {
	sync.Mutex
	n int
}

func labs() int {
	labCount.Lock()
	defer labCount.Unlock()
	labCount.n++
	return labCount.n
}

// start starts a kubelet, as after a restart if there was one.
func (l *lab) start() {
	ctx, cancel := context.WithCancel(context.Background())
	k := &Pods{
		Client: l.client, RuntimeName: "containerd", Runtime: l.cri, Images: l.images, Recorder: l.events,
		Cgroups: cgroups.New(l.group, 1<<30), Net: podnet.Config{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", ResolvConf: filepath.Join(l.dir, "resolv.conf")},
		Services: func() []*corev1.Service { return nil }, Allocatable: func() corev1.ResourceList { return amount("4", "4Gi") }, HostIPs: []string{"198.18.0.2"}, LogsDir: filepath.Join(l.dir, "logs"),
	}
	k.Objects = objects.New(l.client, func(uids []types.UID) { k.Wake(uids...) })
	k.Volumes = volumes.New(filepath.Join(l.dir, "pods"), filepath.Join(l.dir, "local-volumes"), volumes.Sources{
		ConfigMap: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.ConfigMap, error) {
			return k.Objects.ConfigMap(ctx, p.UID, p.Namespace, name)
		},
		Secret: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.Secret, error) {
			return k.Objects.Secret(ctx, p.UID, p.Namespace, name)
		},
		Token: func(context.Context, *corev1.Pod, authenticationv1.TokenRequestSpec) (string, time.Time, error) {
			return "token", time.Now().Add(time.Hour), nil
		},
	})
	k.Init(ctx)
	l.k = k
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	l.mu.Lock()
	for _, p := range l.pods {
		k.Set(p.DeepCopy())
	}
	l.mu.Unlock()
	l.stop = func() {
		cancel()
		<-done
		for uid := range l.pods {
			k.Objects.Release(uid)
		}
		synctest.Wait()
	}
}

func (l *lab) patched(a clienttesting.Action) (bool, runtime.Object, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	patch := a.(clienttesting.PatchAction)
	for uid, p := range l.pods {
		if p.Name != patch.GetName() {
			continue
		}
		old, err := json.Marshal(p)
		if err != nil {
			return true, nil, err
		}
		data, err := strategicpatch.StrategicMergePatch(old, patch.GetPatch(), corev1.Pod{})
		if err != nil {
			return true, nil, err
		}
		next := &corev1.Pod{}
		if err := json.Unmarshal(data, next); err != nil {
			return true, nil, err
		}
		l.rv++
		next.ResourceVersion = fmt.Sprint(l.rv)
		l.pods[uid] = next
		go l.k.Set(next.DeepCopy())
		return true, next.DeepCopy(), nil
	}
	return true, nil, fmt.Errorf("no pod %s", patch.GetName())
}

func (l *lab) removed(a clienttesting.Action) (bool, runtime.Object, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uid, p := range l.pods {
		if p.Name == a.(clienttesting.DeleteAction).GetName() {
			delete(l.pods, uid)
			go l.k.Gone(p)
		}
	}
	return true, nil, nil
}

// create makes a pod; containers without an image get one that is there.
func (l *lab) create(spec corev1.PodSpec) *corev1.Pod {
	l.t.Helper()
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].Image == "" {
				list[i].Image = "have"
			}
		}
	}
	l.mu.Lock()
	l.rv++
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", l.rv), Namespace: "default", UID: types.UID(fmt.Sprintf("uid-%d", l.rv)), ResourceVersion: fmt.Sprint(l.rv)}, Spec: spec, Status: corev1.PodStatus{Phase: corev1.PodPending}}
	l.pods[p.UID] = p
	l.mu.Unlock()
	l.k.Set(p.DeepCopy())
	synctest.Wait()
	return p
}

// remove asks for a graceful end, as the API does.
func (l *lab) remove(p *corev1.Pod, grace int64) {
	l.mu.Lock()
	next := l.pods[p.UID].DeepCopy()
	l.rv++
	next.ResourceVersion = fmt.Sprint(l.rv)
	now := metav1.Now()
	next.DeletionTimestamp, next.DeletionGracePeriodSeconds = &now, &grace
	l.pods[p.UID] = next
	l.mu.Unlock()
	l.k.Set(next.DeepCopy())
	synctest.Wait()
}

// status is what the API has; nil: the object is gone.
func (l *lab) status(p *corev1.Pod) *corev1.PodStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pods[p.UID]; p != nil {
		return p.Status.DeepCopy()
	}
	return nil
}

func (l *lab) wait(d time.Duration) { time.Sleep(d); synctest.Wait() }

func (l *lab) wantCalls(want ...string) {
	l.t.Helper()
	if got := l.cri.history(); !slices.Equal(got, want) {
		l.t.Errorf("calls\n got %q\nwant %q", got, want)
	}
}

func ready(s *corev1.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
