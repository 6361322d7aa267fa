package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// testPathTricks asks for logs, commands and proxies by names and paths that lead elsewhere, as a user who may use those of one namespace: no kubelet is
// ever asked for anything.
func testPathTricks(a *api) {
	k, create := a.node(), metav1.CreateOptions{}
	all := []string{"get", "create"}
	must(a.client.RbacV1().Roles(a.ns).Create(a.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "guest"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "pods/log", "pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "services/proxy"}, Verbs: all},
	}}, create))(a)
	must(a.client.RbacV1().RoleBindings(a.ns).Create(a.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "guest"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "guest"}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "guest-" + a.ns}},
	}, create))(a)
	guest := must(rest.HTTPClientFor(a.server.As(a, "guest-"+a.ns)))(a)
	admin := must(rest.HTTPClientFor(a.server.Admin))(a)
	ask := func(t *testing.T, client *http.Client, path string) (int, string) {
		t.Helper()
		req := must(http.NewRequestWithContext(t.Context(), "GET", a.server.Admin.Host+path, nil))(t)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode, string(must(io.ReadAll(io.LimitReader(res.Body, 1<<20)))(t))
	}
	// Caches know the role when the log can be read; by that the test knows that it could find something.
	a.eventually("the guest reads the log", func(ctx context.Context) error {
		if code, body := ask(a.T, guest, "/api/v1/namespaces/"+a.ns+"/pods/p/log?container=c"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	before := len(k.requests())
	ns, node := "/api/v1/namespaces/"+a.ns, "n-"+a.ns
	for _, path := range []string{
		ns + "/pods/..%2f..%2fkube-system%2fpods%2fx/log", ns + "/pods/p%2f..%2fq/log", ns + "/pods/%2e%2e/log", ns + "/pods/p%00/log",
		ns + "/pods/p/log?container=..%2f..%2f..%2fexec%2f" + a.ns + "%2fp%2fc", ns + "/pods/p/log?container=c%2f..%2fd", ns + "/pods/p/log?container=c%3fprevious=true",
		ns + "/pods/p/exec?container=..%2f..%2f..%2frun&command=id", ns + "/pods/p/attach?container=c%2f..", ns + "/pods/p/portforward/../../../../../nodes/" + node + "/proxy/pods",
		ns + "/pods/p/log/../../../../../nodes/" + node + "/proxy/pods", ns + "/../../nodes/" + node + "/proxy/pods", ns + "/pods/p/../../../../nodes/" + node + "/proxy/pods",
		ns + "%2f..%2fkube-system/pods/p/log", "/api/v1/namespaces/..%2f" + a.ns + "/pods/p/log", "/api/v1/namespaces/%2e%2e/pods/p/log",
		"/api/v1/nodes/" + node + "/proxy/pods", "/api/v1/nodes/" + node + "/proxy/../../../namespaces/" + a.ns + "/pods/p/log", "/api/v1//nodes/" + node + "/proxy/pods",
		"//api/v1/nodes/" + node + "/proxy/pods", "/api/v1/proxy/nodes/" + node + "/pods", "/api/v1/nodes/" + node + ":10250/proxy/pods", "/api/v1/nodes/https:" + node + ":10250/proxy/pods",
		ns + "/pods/https:p:10250@" + node + "/proxy/pods", ns + "/pods/p:10250%2f..%2f/proxy/pods", ns + "/pods/p%23/proxy/", ns + "/services/..%2f..%2fnodes%2f" + node + "/proxy/pods", ns + "/services/http:web@127.0.0.1:80/proxy/",
		"/apis/v1/../../api/v1/nodes/" + node + "/proxy/pods", "/healthz/../api/v1/nodes/" + node + "/proxy/pods", "/version/..%2fapi/v1/nodes/" + node + "/proxy/pods",
	} {
		a.Run(path, func(t *testing.T) {
			code, body := ask(t, guest, path)
			var status metav1.Status
			if code < 400 || code > 503 || json.Unmarshal([]byte(body), &status) != nil && code != http.StatusNotFound {
				t.Errorf("%d %.300s", code, body)
			}
			if asked := k.requests(); len(asked) != before {
				t.Errorf("the kubelet was asked for %s", asked[before:])
				before = len(asked)
			}
		})
	}
	// What an administrator sends through a node's proxy stays with the kubelet, however it is written.
	for _, path := range []string{"../../../../api/v1/secrets", "..%2f..%2fsecrets", "%2e%2e/%2e%2e/secrets", "/etc/passwd"} {
		if code, body := ask(a.T, admin, "/api/v1/nodes/"+node+"/proxy/"+path); code == http.StatusOK && !strings.HasPrefix(body, "GET /") {
			a.Errorf("%s: %d %.300s", path, code, body)
		}
	}
}
