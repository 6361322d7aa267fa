package kubelet_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"

	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/kubelet/objects"
	"github.com/strake-io/strake/kubelet/podnet"
	"github.com/strake-io/strake/kubelet/podworker"
	"github.com/strake-io/strake/kubelet/server"
	"github.com/strake-io/strake/kubelet/stats"
	"github.com/strake-io/strake/kubelet/volumes"
)

// The tests of this package run in a network namespace of their own: TestMain starts them again in there.
const inNamespace = "STRAKE_KUBELET_TEST_NETNS"

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	os.Exit(reexec())
}

func reexec() int {
	ns := fmt.Sprintf("strake-kubelet-%d", os.Getpid())
	for _, args := range [][]string{{"netns", "add", ns}, {"-n", ns, "link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ip %v: %v\n%s", args, err, out)
			return 1
		}
	}
	defer exec.Command("ip", "netns", "del", ns).Run()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + ns, os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inNamespace+"="+ns)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return 1
	}
	return 0
}

const (
	busybox = "strake.io/busybox:1"
	pause   = "strake.io/pause:1"
)

// machine is a kubelet without an API server: a containerd of its own, a fake API.
type machine struct {
	t        *testing.T
	dir      string
	group    string
	endpoint string
	cri      cri.RuntimeService
	images   cri.ImageManagerService
	client   *fake.Clientset
	pods     *podworker.Pods
	stop     func()
	srv      *httptest.Server
	stats    stats.Config
}

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "%[1]s/c.sock"
[ttrpc]
  address = "%[1]s/c.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "strake.io/pause:1"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "%[1]s/cni"
  conf_dir = "%[1]s/net.d"
`

// The network of these pods is their loopback: the plugin brings it up and tells an address that leads nowhere.
const plugin = `#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}';;
ADD) nsenter --net="$CNI_NETNS" ip link set lo up
  echo '{"cniVersion":"0.3.1","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"version":"4","interface":0,"address":"127.0.0.1/8"}]}';;
esac
`

func start(t *testing.T) *machine {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	for _, bin := range []string{"containerd", "runc", "ctr", "busybox"} {
		if _, err := exec.LookPath(bin); err != nil {
			t.Fatalf("needs %s: `make test` installs it", bin)
		}
	}
	dir, err := os.MkdirTemp("", "strake-kubelet") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, group: "/" + filepath.Base(dir), endpoint: "unix://" + dir + "/c.sock", client: fake.NewClientset()}
	t.Cleanup(func() {
		if err := cgroups.New(m.group, 1<<30).RemoveAll(); err != nil {
			t.Error(err)
		}
		m.sh(`grep -o "%s[^ ]*" /proc/self/mounts | sort -r | while read p; do umount -l "$p"; done; rm -rf "%s"`, dir, dir)
	})
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("config.toml", fmt.Sprintf(containerdConfig, dir), 0o600)
	write("cni/loopback", plugin, 0o755)
	write("cni/nothing", plugin, 0o755)
	write("net.d/10-nothing.conflist", `{"cniVersion":"0.3.1","name":"nothing","plugins":[{"type":"nothing"}]}`, 0o644)
	write("resolv.conf", "nameserver 192.0.2.1\n", 0o644)
	m.startContainerd()
	m.image()
	ctx := t.Context()
	if m.cri, err = remote.NewRemoteRuntimeService(ctx, m.endpoint, time.Minute, nil, false); err != nil {
		t.Fatal(err)
	}
	if m.images, err = remote.NewRemoteImageService(ctx, m.endpoint, time.Minute, nil, false); err != nil {
		t.Fatal(err)
	}
	m.eventually("the runtime has its network", func() bool {
		s, err := m.cri.Status(ctx, false)
		return err == nil && !slices.ContainsFunc(s.Status.Conditions, func(c *runtimeapi.RuntimeCondition) bool { return !c.Status })
	})
	m.startKubelet()
	t.Cleanup(func() {
		m.stop()
		boxes, err := m.cri.ListPodSandbox(context.Background(), nil)
		if err != nil {
			t.Error(err)
		}
		for _, b := range boxes {
			if err := m.cri.StopPodSandbox(context.Background(), b.Id); err != nil {
				t.Error(err)
			}
			if err := m.cri.RemovePodSandbox(context.Background(), b.Id); err != nil {
				t.Error(err)
			}
		}
	})
	m.serve()
	t.Cleanup(func() { m.srv.Close() })
	return m
}

func (m *machine) startContainerd() {
	log, err := os.Create(filepath.Join(m.dir, "containerd.log"))
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command("containerd", "--config", filepath.Join(m.dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if m.t.Failed() {
			data, _ := os.ReadFile(log.Name())
			m.t.Logf("containerd: %s", data[max(len(data)-4000, 0):])
		}
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		log.Close()
	})
	m.eventually("containerd serves", func() bool {
		return exec.Command("ctr", "--address", m.dir+"/c.sock", "--namespace", "k8s.io", "version").Run() == nil
	})
}

// image makes two images of the machine's static busybox, one of them that of the sandboxes, and loads them.
func (m *machine) image() {
	m.sh(`cd %s; mkdir -p i/root/bin i/root/tmp; cp "$(command -v busybox)" i/root/bin/busybox; cd i; for a in sh cat sleep echo ls ln nc env tail stty head; do ln -s busybox root/bin/$a; done
tar -C root -cf layer.tar .; sum=$(sha256sum layer.tar | cut -d' ' -f1)
conf() { printf '{"architecture":"%s","os":"linux","config":{%%s},"rootfs":{"type":"layers","diff_ids":["sha256:%%s"]}}' "$1" $sum; }
conf '"Env":["PATH=/bin"]' > a.json; conf '"Entrypoint":["/bin/sleep","1000000"]' > b.json
printf '[{"Config":"a.json","RepoTags":["%s"],"Layers":["layer.tar"]},{"Config":"b.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf image.tar layer.tar a.json b.json manifest.json; ctr --address %s/c.sock --namespace k8s.io images import image.tar`, m.dir, goruntime.GOARCH, busybox, pause, m.dir)
}

func (m *machine) sh(format string, args ...any) string {
	m.t.Helper()
	out, err := exec.Command("sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// patience is far longer than anything here takes.
const patience = 60 * time.Second

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("not so after %s: %s", patience, what)
		}
	}
}

// startKubelet starts the workers, as after a restart if they ran before.
func (m *machine) startKubelet() {
	ctx, cancel := context.WithCancel(context.Background())
	k := &podworker.Pods{
		Client: m.client, RuntimeName: "containerd", Runtime: m.cri, Images: m.images, Endpoint: m.endpoint, Recorder: record.NewFakeRecorder(10000),
		Cgroups: cgroups.New(m.group, 1<<30), Net: podnet.Config{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", ResolvConf: filepath.Join(m.dir, "resolv.conf")},
		Services: func() []*corev1.Service { return nil }, Allocatable: func() corev1.ResourceList { return nil }, HostIPs: []string{"127.0.0.1"}, LogsDir: filepath.Join(m.dir, "logs"),
	}
	k.Objects = objects.New(m.client, func(uids []types.UID) { k.Wake(uids...) })
	k.Volumes = volumes.New(filepath.Join(m.dir, "pods"), filepath.Join(m.dir, "local-volumes"), volumes.Sources{
		Secret: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.Secret, error) {
			return k.Objects.Secret(ctx, p.UID, p.Namespace, name)
		},
	})
	k.Init(ctx)
	f := informers.NewSharedInformerFactory(m.client, 0)
	inf := f.Core().V1().Pods().Informer()
	if _, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { k.Set(obj.(*corev1.Pod)) }, UpdateFunc: func(_, obj any) { k.Set(obj.(*corev1.Pod)) }, DeleteFunc: func(obj any) { k.Gone(obj.(*corev1.Pod)) },
	}); err != nil {
		m.t.Fatal(err)
	}
	f.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	m.pods = k
	m.stop = func() { cancel(); <-done; f.Shutdown() }
	m.stats = stats.Config{
		NodeName: "node-1", RootDir: m.dir, Runtime: m.cri, Images: m.images, Pods: k.List, Cgroups: k.Cgroups, Sandbox: k.SandboxPID,
		VolumesDir: func(p *corev1.Pod) string { return k.Volumes.PodDir(p.UID) }, LogsDir: k.LogsOf,
	}
}

func (m *machine) serve() {
	m.client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		r.Status.Authenticated = r.Spec.Token == "token"
		return true, r, nil
	})
	m.client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		r.Status.Allowed = true
		return true, r, nil
	})
	m.srv = httptest.NewTLSServer(server.Handler(server.Config{NodeName: "node-1", Client: m.client, Runtime: m.cri, Pods: m.pods, Stats: m.stats, Probes: m.pods.Probes()}))
}

// create makes a pod of a shell script and waits until ok.
func (m *machine) create(name, script string, change func(*corev1.Pod), ok func(*corev1.Pod) bool) *corev1.Pod {
	m.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)}, Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "c", Image: busybox, Command: []string{"sh", "-c", script}, TerminationMessagePath: "/dev/termination-log"}},
	}}
	if change != nil {
		change(p)
	}
	if _, err := m.client.CoreV1().Pods("default").Create(m.t.Context(), p, metav1.CreateOptions{}); err != nil {
		m.t.Fatal(err)
	}
	return m.wait(name, ok)
}

func (m *machine) get(name string) *corev1.Pod {
	p, err := m.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

func (m *machine) wait(name string, ok func(*corev1.Pod) bool) *corev1.Pod {
	m.t.Helper()
	var p *corev1.Pod
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if p = m.get(name); p != nil && ok(p) {
			return p
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("pod %s: %s %+v", name, p.Status.Phase, p.Status.ContainerStatuses)
		}
	}
}

// remove ends a pod gracefully and waits until nothing of it is left.
func (m *machine) remove(name string, grace int64) {
	m.t.Helper()
	p := m.get(name)
	now := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	if _, err := m.client.CoreV1().Pods("default").Update(m.t.Context(), p, metav1.UpdateOptions{}); err != nil {
		m.t.Fatal(err)
	}
	m.eventually("pod "+name+" is gone", func() bool { return m.get(name) == nil })
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func phase(want corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p.Status.Phase == want }
}

// fetch asks the kubelet's API.
func (m *machine) fetch(path string) string {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), "GET", m.srv.URL+path, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer token")
	resp, err := m.srv.Client().Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		m.t.Fatalf("%s: %d %s %v", path, resp.StatusCode, body, err)
	}
	return string(body)
}

func (m *machine) url(path string, q url.Values) *url.URL {
	u, err := url.Parse(m.srv.URL + path)
	if err != nil {
		m.t.Fatal(err)
	}
	u.RawQuery = q.Encode()
	return u
}

func lines(s string) []string { return strings.Split(strings.TrimSuffix(s, "\n"), "\n") }
