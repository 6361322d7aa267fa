package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

func TestAdminKubeconfig(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.kubeconfig")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"before":           {[]string{"--data-dir", dir, "kubectl", "get", "pods"}, path},
		"after":            {[]string{"kubectl", "get", "-n", "demo", "pods", "-owide", "--data-dir=" + dir}, path},
		"completion":       {[]string{"__complete", "kubectl", "-n", "demo", "--data-dir", dir, "get", ""}, path},
		"of the container": {[]string{"kubectl", "--data-dir", "/nowhere", "exec", "-it", "p", "--", "c", "--data-dir", dir}, ""},
		"no cluster":       {[]string{"kubectl", "--data-dir", t.TempDir(), "get", "pods"}, ""},
		"no value":         {[]string{"kubectl", "get", "--data-dir"}, ""},
		"help":             {[]string{"kubectl", "--data-dir", dir, "--help"}, path},
	} {
		t.Run(name, func(t *testing.T) {
			if got := adminKubeconfig(c.args); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// kubectl's own commands are made for command lines that name it, and its line in the help for all.
func TestKubectlIsMadeWhereItIsNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{{[]string{"agent"}, false}, {[]string{"help"}, false}, {[]string{"--data-dir", "/nowhere", "kubectl", "get"}, true}, {[]string{"__complete", "kubectl", ""}, true}, {[]string{"help", "kubectl"}, true}} {
		k, _, err := rootCommand(c.args).Find([]string{"kubectl"})
		if err != nil || !k.IsAvailableCommand() || k.HasSubCommands() != c.want {
			t.Errorf("%q: %v, subcommands %v, %v", c.args, k.Name(), k.HasSubCommands(), err)
		}
	}
}

// Without a cluster, and told of no other, kubectl would ask localhost:8080 five times. Who names that host means it.
func TestKubectlWithoutACluster(t *testing.T) {
	const ours = "there is no cluster in "
	if said, dir := kubectlSays(t, ""); !strings.Contains(said, ours+dir) {
		t.Errorf("said %q", said)
	}
	if said, _ := kubectlSays(t, "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'http://localhost:8080'}}]\ncontexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n"); said == "" || strings.Contains(said, ours) {
		t.Errorf("with a kubeconfig that names it: %q", said)
	}
	t.Setenv("KUBERNETES_MASTER", "http://localhost:8080")
	if said, _ := kubectlSays(t, ""); said == "" || strings.Contains(said, ours) {
		t.Errorf("with KUBERNETES_MASTER: %q", said)
	}
}

// kubectlSays is what kubectl ends with for a folder without a cluster, and a kubeconfig elsewhere.
func kubectlSays(t *testing.T, kubeconfig string) (said, dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "config")
	if kubeconfig != "" {
		if err := os.WriteFile(path, []byte(kubeconfig), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HOME", dir)
	t.Setenv("KUBECONFIG", path)
	cmdutil.BehaviorOnFatal(func(message string, code int) {
		said = message
		panic(code) // as the process would end
	})
	defer cmdutil.DefaultBehaviorOnFatal()
	args := []string{"--data-dir", dir, "kubectl", "get", "pods"}
	root := rootCommand(args)
	root.SetArgs(args)
	func() {
		defer func() {
			if code := recover(); code != 1 {
				t.Errorf("ended with %v", code)
			}
		}()
		t.Error(root.ExecuteContext(t.Context()))
	}()
	return said, dir
}

// TestKubectlEndsByASignal while it waits for a server, which takes no context: Ctrl-C ends it, as it ends kubectl.
func TestKubectlEndsByASignal(t *testing.T) {
	const commandLine = "STRAKE_TEST_COMMAND_LINE"
	if line := os.Getenv(commandLine); line != "" {
		os.Args = strings.Fields(line)
		main()
		return
	}
	asked := make(chan struct{}, 100)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer silent.Close()
	c := exec.Command("/proc/self/exe", "-test.run=^TestKubectlEndsByASignal$")
	c.Env = append(os.Environ(), commandLine+"=strake kubectl get pods --server "+silent.URL)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { c.Process.Kill() })
	defer late.Stop()
	<-asked
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if s := c.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != os.Interrupt {
		t.Errorf("it ended otherwise: %v", c.ProcessState)
	}
}
