package controllers_test

import (
	"bufio"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// auditLog is the file in which the API server tells what controllers have asked of it.
type auditLog string

func (l auditLog) settings(t *testing.T) *apiserver.Settings {
	t.Helper()
	policy := string(l) + ".policy"
	rules := `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
		{"level": "Metadata", "userGroups": ["` + serviceaccount.MakeNamespaceGroupName(metav1.NamespaceSystem) + `"]}, {"level": "Metadata", "users": ["` + user.KubeControllerManager + `"]}, {"level": "None"}]}`
	if err := os.WriteFile(policy, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	s := apiserver.NewSettings()
	s.Audit.PolicyFile, s.Audit.LogOptions.Path = policy, string(l)
	return s
}

func (l auditLog) read(t *testing.T) []auditv1.Event {
	t.Helper()
	f, err := os.Open(string(l))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var events []auditv1.Event
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return events // the last line may be half written
		}
		var e auditv1.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		events = append(events, e)
	}
}

// testIdentities looks at what the other tests had controllers do: each by its own ServiceAccount, and nothing that the account's role does not allow.
func testIdentities(t *testing.T, c *cluster) {
	// What each is seen to write. Certificates and expired tokens are in kubelet/certificates.
	missing := map[string]string{
		"namespace-controller": "namespaces/finalize", "service-account-controller": "serviceaccounts", "root-ca-cert-publisher": "configmaps", "bootstrap-signer": "configmaps",
		"node-controller": "nodes", "pod-garbage-collector": "pods", "deployment-controller": "replicasets", "replicaset-controller": "pods", "replication-controller": "pods",
		"disruption-controller": "poddisruptionbudgets/status", "statefulset-controller": "pods", "daemon-set-controller": "pods", "job-controller": "pods", "ttl-after-finished-controller": "jobs",
		"cronjob-controller": "jobs", "endpointslice-controller": "endpointslices", "endpoint-controller": "endpoints", "endpointslicemirroring-controller": "endpointslices",
		"horizontal-pod-autoscaler": "deployments/scale", "resourcequota-controller": "resourcequotas/status", "persistent-volume-binder": "persistentvolumes",
		"local-volume-provisioner": "storageclasses", "ephemeral-volume-controller": "persistentvolumeclaims", "service-cidrs-controller": "servicecidrs/status",
		"pvc-protection-controller": "persistentvolumeclaims", "pv-protection-controller": "persistentvolumes", "validatingadmissionpolicy-status-controller": "validatingadmissionpolicies/status",
		"generic-garbage-collector": "pods",
	}
	for _, e := range c.audit.read(t) {
		what := e.Verb + " " + e.RequestURI
		if e.Annotations["authorization.k8s.io/decision"] == "forbid" {
			t.Errorf("%s may not %s: %s", e.User.Username, what, e.Annotations["authorization.k8s.io/reason"])
		}
		if slices.Contains([]string{"get", "list", "watch"}, e.Verb) || e.ObjectRef == nil {
			continue
		}
		resource := e.ObjectRef.Resource
		if e.ObjectRef.Subresource != "" {
			resource += "/" + e.ObjectRef.Subresource
		}
		_, account, err := serviceaccount.SplitUsername(e.User.Username)
		if err != nil {
			if resource != "serviceaccounts" && resource != "serviceaccounts/token" {
				t.Errorf("%s writes itself: %s", e.User.Username, what)
			}
			continue
		}
		if !strings.HasSuffix(e.UserAgent, "/"+account) {
			t.Errorf("%s calls itself %q", e.User.Username, e.UserAgent)
		}
		if missing[account] == resource && e.ResponseStatus != nil && e.ResponseStatus.Code < 300 {
			delete(missing, account)
		}
	}
	for _, account := range slices.Sorted(maps.Keys(missing)) {
		t.Errorf("%s was not seen to write %s", account, missing[account])
	}
}
