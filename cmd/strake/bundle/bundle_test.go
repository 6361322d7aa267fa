package bundle

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/cmd/strake/layout"
)

const planted = "Zm9vYmFy-planted-4711"

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"password=" + planted:                        "password=[removed]",
		"--token=" + planted + " --v=2":              "--token=[removed] --v=2",
		`{"clientSecret": "` + planted + `","a":1}`:  `{"clientSecret": "[removed]","a":1}`,
		"DB_PASSWORD: '" + planted + "'":             "DB_PASSWORD: '[removed]'",
		"Authorization: Bearer " + planted + "\nx":   "Authorization: Bearer [removed]\nx",
		`{"m":"api-key=` + planted + `\"}"}`:         `{"m":"api-key=[removed]\"}"}`,
		"https://user:" + planted + "@host/x":        "https://[removed]@host/x",
		"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJl.c2ln": "[removed]",
		"joining with abcdef.0123456789abcdef now":   "joining with [removed] now",
		"key:\n-----BEGIN EC PRIVATE KEY-----\n" + planted + "\n-----END EC PRIVATE KEY-----\nrest":   "key:\n[removed]\nrest",
		"cut off:\n-----BEGIN PRIVATE KEY-----\n" + planted:                                           "cut off:\n[removed]",
		"client-key-data: LS0tLS1CRUdJTiBFQyBQUklWQVRF":                                               "client-key-data: [removed]",
		"nothing to hide: 10.96.0.1:443 demo/echo":                                                    "nothing to hide: 10.96.0.1:443 demo/echo",
		`{"mountToken": false, "serviceAccountToken": {"expirationSeconds": 3607}, "secrets": ["x"]}`: `{"mountToken": false, "serviceAccountToken": {"expirationSeconds": 3607}, "secrets": ["x"]}`,
		`"secretName": ""`: `"secretName": ""`,
	} {
		if got := Text(in); got != want {
			t.Errorf("%q\n got %q\nwant %q", in, got, want)
		}
	}
}

// read opens an archive.
func read(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(data)
	}
}

// TestPlantedSecrets plants one wherever a cluster may have one.
func TestPlantedSecrets(t *testing.T) {
	l, err := layout.New(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(l.Settings(), `{"nodeName":"n","token":"`+planted+`"}`)
	write(l.Log("agent"), "I0101 login with password="+planted+"\nI0101 the agent runs\n")
	write(filepath.Join(l.PKI(), "ca.key"), planted)
	write(l.AdminKubeconfig(), planted)
	write(filepath.Join(l.CNIConf(), "10-x.conflist"), `{"secret":"`+planted+`"}`)
	write(filepath.Join(l.CNIState(), "a,eth0.json"), `{"host":"stk1"}`)
	meta := metav1.ObjectMeta{Name: "x", Namespace: "n", Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": planted}}
	get := &corev1.HTTPGetAction{HTTPHeaders: []corev1.HTTPHeader{{Name: "X-Auth", Value: planted}}}
	container := corev1.Container{
		Name: "c", Image: "image-to-be-seen", Env: []corev1.EnvVar{{Name: "NAME_TO_BE_SEEN", Value: planted}}, Args: []string{planted}, Command: []string{"sh", planted},
		LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: get}}, ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{planted}}}},
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{planted}}}},
	}
	no, seconds := false, int64(3607)
	pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{container}, Containers: []corev1.Container{container}, EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon(container)}},
		AutomountServiceAccountToken: &no,
		Volumes:                      []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &seconds}}}}}}, {Name: "v", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{VolumeAttributes: map[string]string{"k": planted}}}}},
	}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: planted}}}}}}
	client := fake.NewClientset(pod, &corev1.Service{ObjectMeta: meta}, &corev1.Node{ObjectMeta: meta},
		&corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"k": planted}, Data: map[string][]byte{"k": []byte(planted)}},
		&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"k": planted}},
		&corev1.Event{ObjectMeta: meta, Message: "probe failed: token=" + planted})
	path := filepath.Join(t.TempDir(), "b.tgz")
	entries, err := Write(t.Context(), path, Sections(Node{
		Layout: l, CgroupRoot: t.TempDir(), Version: "v1",
		Status: func(context.Context) (any, error) { return map[string]string{"problem": "password=" + planted}, nil },
		Doctor: func(context.Context) (any, error) { return nil, errors.New("bearer " + planted) },
		Client: func() (kubernetes.Interface, error) { return client, nil },
	}))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	files := read(t, path)
	for name, text := range files {
		if strings.Contains(text, planted) {
			t.Errorf("%s has the secret:\n%s", name, text)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON:\n%s", name, text)
		}
	}
	for name, seen := range map[string]string{
		"api/pods.json": "NAME_TO_BE_SEEN", "log/agent.log": "the agent runs", "doctor.json.error": "[removed]", "network/links.json": `"lo"`, "network/sysctls.txt": "net.ipv4.ip_forward = ",
		"settings.json": `"nodeName":"n"`, "cni/allocations.json": "stk1", "version.json": "v1", "bpf/rows.json.error": "bpf", "contents.json": "api/pods.json", "api/events.json": "probe failed",
	} {
		if !strings.Contains(files[name], seen) {
			t.Errorf("%s does not tell %q: %q", name, seen, files[name])
		}
	}
	if !strings.Contains(files["api/pods.json"], "image-to-be-seen") {
		t.Error("images are to be seen")
	}
	var b strings.Builder
	Print(&b, path, entries)
	if !strings.Contains(b.String(), "api/pods.json") || strings.Contains(b.String(), planted) {
		t.Errorf("the list:\n%s", b.String())
	}
	if _, err := Write(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), "-f") {
		t.Errorf("an archive was overwritten: %v", err)
	}
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("first line\nsecond line\nthird line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int64]string{
		1 << 20: "first line\nsecond line\nthird line\n",
		15:      "[23 bytes before this are left out]\nthird line\n",
	} {
		if got, err := logTail(path, size); err != nil || string(got) != want {
			t.Errorf("%d bytes: %q, %v; want %q", size, got, err, want)
		}
	}
}

func TestWriteThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.tgz")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Write(ctx, path, []Section{
		{"a", func(context.Context) ([]byte, error) { cancel(); return []byte("x"), nil }},
		{"b", func(context.Context) ([]byte, error) { return []byte("x"), nil }},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half an archive is left: %v", err)
	}
}

func FuzzText(f *testing.F) {
	f.Add(`{"token":"x"}`)
	f.Add("-----BEGIN X-----")
	f.Fuzz(func(t *testing.T, s string) {
		if got := Text(Text(s)); got != Text(got) {
			t.Errorf("%q: it goes on changing: %q", s, got)
		}
	})
}
