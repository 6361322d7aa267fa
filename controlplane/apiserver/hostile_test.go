package apiserver_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// testHostile sends what no client means well with: each is refused by a Status, and takes bounded memory.
func testHostile(a *api) {
	client := must(rest.HTTPClientFor(a.server.Admin))(a)
	maps, crds := "/api/v1/namespaces/"+a.ns+"/configmaps", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	must(a.client.CoreV1().ConfigMaps(a.ns).Create(a.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "target"}}, metav1.CreateOptions{}))(a)
	labels := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%q:\"v\",", fmt.Sprintf("l%d", i))
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	bomb := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	crd := func(rule string, bounds string) string {
		return fmt.Sprintf(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"bombs.test.strake.io"},"spec":{"group":"test.strake.io","scope":"Namespaced","names":{"plural":"bombs","kind":"Bomb"},
"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"array","items":{"type":"array","items":{"type":"string"%s}},"x-kubernetes-validations":[{"rule":%q}]}}}}}]}}`, bounds, rule)
	}
	const js, ym = "application/json", "application/yaml"
	for _, test := range []struct {
		name, method, path, kind, body string
	}{
		{"more than 3 MiB", "POST", maps, js, `{"metadata":{"name":"x"},"data":{"k":"` + strings.Repeat("a", 4<<20) + `"}}`},
		{"deep JSON", "POST", maps, js, `{"metadata":{"name":"x"},"data":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + "}"},
		{"deep arrays", "POST", maps, js, strings.Repeat("[", 1_000_000)},
		{"a YAML bomb", "POST", maps, ym, bomb},
		{"100 000 labels", "POST", maps, js, `{"metadata":{"name":"x","labels":{` + labels(100_000) + `}}}`},
		{"1 MiB of annotations", "POST", maps, js, `{"metadata":{"name":"x","annotations":{"a":"` + strings.Repeat("a", 1<<20) + `"}}}`},
		{"no JSON", "POST", maps, js, "\x00\xff\xfe{"},
		{"broken protobuf", "POST", maps, "application/vnd.kubernetes.protobuf", "k8s\x00\xff\xff\xff\xff\xff\xff"},
		{"broken CBOR", "POST", maps, "application/cbor", "\xd9\xd9\xf7\xbb\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"an unknown format", "POST", maps, "text/html", "<p>"},
		{"a patch of 20 000 steps", "PATCH", maps + "/target", "application/json-patch+json", "[" + strings.TrimSuffix(strings.Repeat(`{"op":"add","path":"/data/a","value":"b"},`, 20_000), ",") + "]"},
		{"a patch that grows by copying", "PATCH", maps + "/target", "application/json-patch+json", `[{"op":"add","path":"/data","value":{"a0":"` + strings.Repeat("x", 1000) + `"}}` + copies(30) + "]"},
		{"a deep merge patch", "PATCH", maps + "/target", "application/merge-patch+json", strings.Repeat(`{"a":`, 50_000) + "1" + strings.Repeat("}", 50_000)},
		{"an apply of nonsense", "PATCH", maps + "/target?fieldManager=m", "application/apply-patch+yaml", bomb},
		{"CEL that explodes", "POST", crds, js, crd("self.all(a, self.all(b, a.all(c, b.all(d, c.contains(d)))))", "")},
		{"CEL that is no CEL", "POST", crds, js, crd("self.(", "")},
		{"a long name", "GET", maps + "/" + strings.Repeat("x", 100_000), "", ""},
		{"a selector of nonsense", "GET", maps + "?labelSelector=" + strings.Repeat("a,", 50_000) + "(", "", ""},
		{"a forged continue token", "GET", maps + "?limit=1&continue=" + strings.Repeat("QQ", 1000), "", ""},
		{"a path out of the tree", "GET", "/api/v1/namespaces/" + a.ns + "/configmaps/..%2f..%2fsecrets", "", ""},
	} {
		a.Run(test.name, func(t *testing.T) {
			before := allocated()
			req := must(http.NewRequestWithContext(t.Context(), test.method, a.server.Admin.Host+test.path, strings.NewReader(test.body)))(t)
			if test.kind != "" {
				req.Header.Set("Content-Type", test.kind)
			}
			res, err := client.Do(req)
			if err != nil {
				// A server may hang up on a body that it does not want to read to its end.
				if !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") && !strings.Contains(err.Error(), "INTERNAL_ERROR") {
					t.Error(err)
				}
				return
			}
			defer res.Body.Close()
			data := must(io.ReadAll(io.LimitReader(res.Body, 10<<20)))(t)
			// On a busy machine time may end before the server has found out what is wrong.
			if (res.StatusCode < 400 || res.StatusCode >= 500) && res.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("%s: %.300s", res.Status, data)
			}
			var status metav1.Status
			if json.Unmarshal(data, &status) != nil || status.Kind != "Status" {
				// The server's own HTTP layer answers before there is an API.
				if res.StatusCode != http.StatusRequestURITooLong && res.StatusCode != http.StatusRequestHeaderFieldsTooLarge && res.StatusCode != http.StatusNotFound {
					t.Errorf("no Status: %s %.300s", res.Status, data)
				}
			}
			if more := int64(allocated()) - int64(before); more > 1<<30 {
				t.Errorf("%d MiB allocated", more>>20)
			}
		})
	}
	if _, err := a.client.CoreV1().ConfigMaps(a.ns).Get(a.Context(), "target", metav1.GetOptions{}); err != nil {
		a.Error(err)
	}
}

// copies doubles a value by each step.
func copies(n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `,{"op":"copy","from":"/data","path":"/data/b%d"}`, i)
	}
	return b.String()
}

// allocated is what the process, server and client both, has allocated since it began.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
