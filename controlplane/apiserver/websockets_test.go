package apiserver_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// socket is a WebSocket as dashboards open it (Headlamp, Lens, Rancher): those in a page say of themselves only what a page may, the subprotocols.
type socket struct {
	*testing.T
	*websocket.Conn
}

func (a *api) openSocket(config *rest.Config, path string, header http.Header, protocols ...string) socket {
	a.Helper()
	c := must(websocket.NewConfig(strings.Replace(config.Host, "https:", "wss:", 1)+path, config.Host))(a)
	c.TlsConfig, c.Header, c.Protocol = must(rest.TLSConfigFor(config))(a), header, protocols
	conn := must(c.DialContext(a.Context()))(a)
	a.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		a.Fatal(err)
	}
	return socket{a.T, conn}
}

// receive reads a message, which must be of this sort.
func (s socket) receive(sort byte) []byte {
	s.Helper()
	var data []byte
	codec := websocket.Codec{Unmarshal: func(got []byte, of byte, _ any) error {
		if data = slices.Clone(got); of != sort {
			return fmt.Errorf("%.100q is of sort %d, want %d", got, of, sort)
		}
		return nil
	}}
	if err := codec.Receive(s.Conn, nil); err != nil {
		s.Fatal(err)
	}
	return data
}

// event reads an event of a watch.
func (s socket) event() string {
	s.Helper()
	var e struct {
		Type   string
		Object metav1.PartialObjectMetadata
	}
	if err := json.Unmarshal(s.receive(websocket.TextFrame), &e); err != nil {
		s.Fatal(err)
	}
	return e.Type + " " + e.Object.Name
}

// testSockets watches and runs commands as dashboards do.
func testSockets(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	a.node()
	maps := a.client.CoreV1().ConfigMaps(a.ns)
	must(a.client.RbacV1().Roles(a.ns).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "viewer"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"list", "watch"}, APIGroups: []string{""}, Resources: []string{"configmaps"}},
		{Verbs: []string{"get", "create"}, APIGroups: []string{""}, Resources: []string{"pods/exec"}},
	}}, create))(a)
	must(a.client.RbacV1().RoleBindings(a.ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "viewer"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "viewer"}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: a.ns}},
	}, create))(a)
	token := must(a.client.CoreV1().ServiceAccounts(a.ns).CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, create))(a).Status.Token
	a.eventually("the role is known", func(context.Context) error {
		return get(a.bearer(token).CoreV1().ConfigMaps(a.ns).List(ctx, metav1.ListOptions{}))
	})
	nobody := rest.AnonymousClientConfig(a.server.Admin)
	bearer := "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(token))
	version := must(maps.List(ctx, metav1.ListOptions{}))(a).ResourceVersion
	path := "/api/v1/namespaces/" + a.ns + "/configmaps?watch=1&resourceVersion=" + version

	watches := map[string]socket{
		"a page":                           a.openSocket(nobody, path, nil, "base64.binary.k8s.io", bearer),
		"a server with a token":            a.openSocket(nobody, path, http.Header{"Authorization": {"Bearer " + token}}),
		"a server that passes a page's on": a.openSocket(a.server.Admin, path, nil, "base64.binary.k8s.io"),
	}
	must(maps.Create(ctx, configMap("one", nil), create))(a)
	must(maps.Patch(ctx, "one", types.MergePatchType, []byte(`{"data":{"k":"w"}}`), metav1.PatchOptions{}))(a)
	if err := maps.Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
		a.Fatal(err)
	}
	for who, s := range watches {
		if got, want := []string{s.event(), s.event(), s.event()}, []string{"ADDED one", "MODIFIED one", "DELETED one"}; !slices.Equal(got, want) {
			a.Errorf("%s sees %q, want %q", who, got, want)
		}
	}
	if got := watches["a page"].Config().Protocol; !slices.Equal(got, []string{"base64.binary.k8s.io"}) {
		a.Errorf("a page is answered with %q", got) // never with the token
	}
	// A watch ends when its time is over.
	s := a.openSocket(a.server.Admin, path+"&timeoutSeconds=1", nil)
	for _, want := range []string{"ADDED one", "MODIFIED one", "DELETED one"} {
		if got := s.event(); got != want {
			a.Errorf("an old watch sees %s, want %s", got, want)
		}
	}
	if err := websocket.Message.Receive(s.Conn, new([]byte)); !errors.Is(err, io.EOF) {
		a.Errorf("after its time a watch has %v", err)
	}

	w := wire{a, must(rest.HTTPClientFor(nobody))(a)}
	upgrade := func(path string, code int, protocols string) {
		a.Helper()
		w.ask("GET", path, nil, code, "application/json", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
			"Origin: https://dashboard.example", "Sec-WebSocket-Protocol: "+protocols)
	}
	upgrade(path, 401, "base64.binary.k8s.io")
	upgrade(path, 401, "base64.binary.k8s.io, base64url.bearer.authorization.k8s.io.cnViYmlzaA")
	upgrade(path, 401, bearer) // one must be left that the server may answer with
	upgrade(strings.Replace(path, "configmaps", "secrets", 1), 403, "base64.binary.k8s.io, "+bearer)

	// Channels are bytes before what is said on them: 0 stdin, 1 stdout, 2 stderr, 3 how it ended, 4 the terminal's size.
	exec := "/api/v1/namespaces/" + a.ns + "/pods/p/exec?container=c&stdin=1&stdout=1&stderr=1&command=cat"
	s = a.openSocket(nobody, exec, nil, "base64.binary.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", bearer)
	if got := s.Config().Protocol; !slices.Equal(got, []string{"v4.channel.k8s.io"}) {
		a.Errorf("subprotocol %q", got)
	}
	s.PayloadType = websocket.BinaryFrame
	if _, err := s.Write([]byte("\x00hello")); err != nil {
		a.Fatal(err)
	}
	var heard string
	for !strings.Contains(heard, "hello") {
		if m := s.receive(websocket.BinaryFrame); m[0] == 1 {
			heard += string(m[1:])
		}
	}
	if want := "p/c [\"cat\"] tty=false\nhello"; heard != want {
		a.Errorf("the command says %q, want %q", heard, want)
	}
	upgrade(strings.Replace(exec, "/exec", "/attach", 1), 403, "v4.channel.k8s.io, "+bearer)
}
