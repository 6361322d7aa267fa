package apiserver_test

import (
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

type warnings []string

func (w *warnings) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

func testComponents(a *api) {
	var said warnings
	conf := rest.CopyConfig(a.server.Admin)
	conf.WarningHandler = &said
	api := must(kubernetes.NewForConfig(conf))(a).CoreV1().ComponentStatuses()
	list := func(o metav1.ListOptions) string {
		var all []string
		for _, s := range must(api.List(a.Context(), o))(a).Items {
			for _, c := range s.Conditions {
				all = append(all, fmt.Sprintf("%s: %s=%s %q %q", s.Name, c.Type, c.Status, c.Message, c.Error))
			}
		}
		return strings.Join(all, "; ")
	}
	bad, good := `controller-manager: Healthy=False "" "it hangs"`, `etcd-0: Healthy=True "ok" ""; scheduler: Healthy=True "ok" ""`
	if got := list(metav1.ListOptions{}); got != bad+"; "+good {
		a.Error(got)
	}
	if got := list(metav1.ListOptions{FieldSelector: "metadata.name!=controller-manager"}); got != good {
		a.Error(got)
	}
	if got := list(metav1.ListOptions{LabelSelector: "app"}); got != "" {
		a.Error(got)
	}
	if got := must(api.Get(a.Context(), "scheduler", metav1.GetOptions{}))(a); got.Name != "scheduler" || len(got.Conditions) != 1 {
		a.Errorf("%+v", got)
	}
	if _, err := api.Get(a.Context(), "nobody", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		a.Error(err)
	}
	if len(said) == 0 || said[0] != "v1 ComponentStatus is deprecated in v1.19+" {
		a.Errorf("warnings: %q", said)
	}
	table := must(a.client.CoreV1().RESTClient().Get().Resource("componentstatuses").SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").Do(a.Context()).Raw())(a)
	if !strings.Contains(string(table), `"cells":["controller-manager","Unhealthy","","it hangs"]`) {
		a.Errorf("%s", table)
	}
}
