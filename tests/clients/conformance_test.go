package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-io/strake/tests/lab"
)

// conformance are Kubernetes' own tests, by their names, that no node takes part in. They run one after the other within a group, and the groups at
// the same time: most of their time they wait.
var conformance = map[string][]string{
	"schemas": {"CustomResourcePublishOpenAPI", "FieldValidation"},
	"machinery": {
		"ggregated ?[Dd]iscovery", `\] Discovery should`, "server version", "API chunking should return", "Watchers should", "priority and fairness should",
		"Namespaces should (patch|apply)", "all services are removed", "AdmissionPolicy", "created by (rc|deployment) when not orphaning", "dependency circle",
		"PropagationPolicy is Orphan", "promptly calculated", "life of a (configMap|secret|replication controller)", "best effort scope",
		"able to update and delete ResourceQuota", "lifecycle of a ResourceQuota",
	},
	"resources": {
		"CustomResourceDefinition Watch", "CustomResourceDefinition resources", "StorageVersionMigration", "CSR API", "should update a ServiceAccount",
		"lifecycle of a ServiceAccount", "kube-root-ca.crt", "sig-instrumentation", "CronJob API", "PodDisruptionBudgets for all", "PodTemplates", "LimitRange", "Node Lifecycle", "ConfigMap lifecycle", "patch a secret", "lease API", "RuntimeClasses API", "SubjectReview",
		"pointing to API Server", "IPAddress API", "ServiceCIDR API", "matches no pods", "EndpointSlice API", "EndpointSliceMirroring", "lifecycle of an Endpoint",
		"Ingress(Class)? API", "service status lifecycle", "collection of services", "listing all namespaces",
	},
}

// TestConformance runs, against the control plane alone, what Kubernetes' own release has to say of an API server and of controllers.
func TestConformance(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "conformance")
	goIn(t, "conformance", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	c, err := lab.New("strake-conform", filepath.Join(dir, "data"), "../../bin/strake")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	server := c.StrakeCommand(ctx, "server")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = server.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	kubectl := filepath.Join(dir, "kubectl")
	if err := os.WriteFile(kubectl, fmt.Appendf(nil, "#!/bin/sh\nexec %s kubectl \"$@\"\n", c.Binary), 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API server", func() error {
		out, err := c.Strake("kubectl", "get", "--raw", "/readyz")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	runs, reports := map[string]*exec.Cmd{}, map[string]string{}
	for group, tests := range conformance {
		reports[group] = filepath.Join(dir, group+".json")
		runs[group] = c.Command(ctx, program, "--kubeconfig", filepath.Join(c.Data, "admin.kubeconfig"), "--kubectl-path", kubectl, "--provider", "skeleton",
			"--ginkgo.label-filter=Conformance", "--ginkgo.focus="+strings.Join(tests, "|"), "--ginkgo.json-report="+reports[group])
		if err := runs[group].Start(); err != nil {
			t.Fatal(err)
		}
	}
	for group, run := range runs {
		t.Run(group, func(t *testing.T) {
			if err := run.Wait(); err != nil {
				defer t.Error(err)
			}
			results(t, reports[group])
		})
	}
}

// results tells what the report of a run has to tell.
func results(t *testing.T, report string) {
	var suites []struct {
		SpecReports []struct {
			State                      string
			ContainerHierarchyTexts    []string
			LeafNodeText               string
			Failure                    struct{ Message string }
			CapturedGinkgoWriterOutput string
		}
	}
	data, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(data, &suites)
	}
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			switch s.State {
			case "skipped": // not of this group
			case "passed":
				passed++
			default:
				t.Errorf("%s %s: %s: %s\n%s", strings.Join(s.ContainerHierarchyTexts, " "), s.LeafNodeText, s.State, s.Failure.Message, s.CapturedGinkgoWriterOutput)
			}
		}
	}
	if passed == 0 {
		t.Error("none of its tests ran")
	}
	t.Logf("%d tests passed", passed)
}
