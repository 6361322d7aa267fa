package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// anonymousTo is an AuthenticationConfiguration that opens these paths, as YAML, to everybody.
func anonymousTo(paths string) string {
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [" + paths + "]}\n"
}

// decide is an AuthorizationConfiguration of these authorizers.
func decide(types ...string) string {
	config := "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n"
	for _, t := range types {
		config += fmt.Sprintf("- {type: %s, name: %q}\n", t, "my-"+strings.ToLower(t))
	}
	return config
}

// TestConfigurationIsFollowed changes who is anonymous and who decides while the server runs.
func TestConfigurationIsFollowed(t *testing.T) {
	t.Parallel()
	authn, authz := filepath.Join(t.TempDir(), "authn.yaml"), filepath.Join(t.TempDir(), "authz.yaml")
	replace(t, authn, anonymousTo("{path: /livez}"))
	replace(t, authz, decide("Node", "RBAC"))
	s := serve(t, func(c *apiserver.Config) {
		c.Settings.AuthenticationConfig, c.Settings.AuthorizationConfig = authn, authz
	})
	admin := clientOf(t, s.Admin)
	anonymous := clientOf(t, rest.AnonymousClientConfig(s.Admin)).Discovery().RESTClient()
	path := func(path string, want int) func(context.Context) error {
		return func(ctx context.Context) error {
			var have int
			if err := anonymous.Get().AbsPath(path).Do(ctx).StatusCode(&have).Error(); have != want {
				return fmt.Errorf("%s: %d, want %d (%w)", path, have, want, err)
			}
			return nil
		}
	}
	counted := func(pattern string) func(context.Context) error {
		return func(context.Context) error {
			if text := metricsOf(t, admin); !regexp.MustCompile(`(?m)^` + pattern).MatchString(text) {
				return fmt.Errorf("no %s in the metrics", pattern)
			}
			return nil
		}
	}
	for _, err := range []error{path("/livez", http.StatusOK)(t.Context()), path("/healthz", http.StatusUnauthorized)(t.Context())} {
		if err != nil {
			t.Error(err)
		}
	}
	replace(t, authn, anonymousTo("{path: /healthz}"))
	eventually(t, "another path", path("/healthz", http.StatusOK))
	eventually(t, "the former path", path("/livez", http.StatusUnauthorized))
	eventually(t, "a reload is counted", counted(`apiserver_authentication_config_controller_automatic_reloads_total\{.*status="success"\} [1-9]`))
	// What is wrong, or never gets ready, changes nothing.
	replace(t, authn, "kind: Nonsense")
	eventually(t, "a failure is counted", counted(`apiserver_authentication_config_controller_automatic_reloads_total\{.*status="failure"\} [1-9]`))
	if err := path("/healthz", http.StatusOK)(t.Context()); err != nil {
		t.Error(err)
	}

	// ann may do nothing, until everybody may do everything.
	ann := clientOf(t, s.As(t, "ann"))
	if err := lists(t.Context(), ann); !apierrors.IsForbidden(err) {
		t.Errorf("RBAC alone: %v", err)
	}
	replace(t, authz, decide("AlwaysAllow"))
	eventually(t, "everything is allowed", func(ctx context.Context) error { return lists(ctx, ann) })
	eventually(t, "a reload is counted", counted(`apiserver_authorization_config_controller_automatic_reloads_total\{.*status="success"\} [1-9]`))
	eventually(t, "decisions are counted", counted(`apiserver_authorization_decisions_total\{decision="allowed",name="my-alwaysallow",type="AlwaysAllow"\} [1-9]`))
	replace(t, authz, "authorizers: []")
	eventually(t, "a failure is counted", counted(`apiserver_authorization_config_controller_automatic_reloads_total\{.*status="failure"\} [1-9]`))
	if err := lists(t.Context(), ann); err != nil {
		t.Errorf("after a bad file: %v", err)
	}
	replace(t, authz, decide("AlwaysDeny"))
	eventually(t, "nothing is allowed", func(ctx context.Context) error {
		if err := lists(ctx, ann); !apierrors.IsForbidden(err) {
			return fmt.Errorf("%w, want forbidden", err)
		}
		return nil
	})
	if err := lists(t.Context(), admin); err != nil {
		t.Errorf("the administrator locked herself out: %v", err)
	}
}

func lists(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{})
	return err
}
