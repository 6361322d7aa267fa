// Command argocd keeps a namespace as a folder of manifests says, by the engine of Argo CD and as its controller uses it; what is Argo CD's beyond that
// has to do with repositories, Redis and browsers. For each line of its input, "sync" or "diff", it prints what became of each object, or which ones
// are not as they should be, and then a line that starts with "end:".
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2/textlogger"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/cache"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/diff"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/sync"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/sync/common"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/sync/hook"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/kube"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/tracing"
)

const (
	tracking = "argocd.argoproj.io/tracking-id"
	manager  = "argocd-controller"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "argocd KUBECONFIG NAMESPACE FOLDER")
		os.Exit(2)
	}
	if err := run(os.Args[1], application{namespace: os.Args[2], folder: os.Args[3]}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// application is what is kept.
type application struct {
	namespace, folder string
	config            *rest.Config
	cluster           cache.ClusterCache
	kubectl           kube.Kubectl
	applier           diff.KubeApplier
}

func run(kubeconfig string, app application) (err error) {
	if app.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return err
	}
	app.config.QPS, app.config.Burst = 50, 100
	log := textlogger.NewLogger(textlogger.NewConfig())
	app.kubectl = &kube.KubectlCmd{Log: log, Tracer: tracing.NopTracer{}}
	app.cluster = cache.NewClusterCache(app.config, cache.SetKubectl(app.kubectl), cache.SetLogr(log), cache.SetPopulateResourceInfoHandler(
		func(un *unstructured.Unstructured, _ bool) (any, bool) {
			id := un.GetAnnotations()[tracking]
			return id, id != ""
		}))
	if err := app.cluster.EnsureSynced(); err != nil {
		return err
	}
	applier, remove, err := app.kubectl.ManageServerSideDiffDryRuns(app.config)
	if err != nil {
		return err
	}
	defer remove()
	app.applier = applier

	orders := map[string]func([]*unstructured.Unstructured) error{"sync": app.sync, "diff": app.diff}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		order := orders[lines.Text()]
		if order == nil {
			return fmt.Errorf("%q is neither sync nor diff", lines.Text())
		}
		target, err := app.read()
		if err == nil {
			err = order(target)
		}
		fmt.Println("end:", err)
	}
	return nil
}

// read reads what there should be.
func (a *application) read() (target []*unstructured.Unstructured, err error) {
	files, err := filepath.Glob(filepath.Join(a.folder, "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		objects, err := kube.SplitYAML(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		target = append(target, objects...)
	}
	for _, o := range target {
		kind := o.GroupVersionKind()
		if namespaced, err := a.cluster.IsNamespaced(kind.GroupKind()); err != nil || namespaced { // a kind that is not there yet is one with namespaces
			o.SetNamespace(a.namespace)
		}
		annotations := o.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[tracking] = fmt.Sprintf("%s:%s/%s:%s/%s", a.namespace, kind.Group, kind.Kind, a.namespace, o.GetName())
		o.SetAnnotations(annotations)
	}
	return target, nil
}

func managed(r *cache.Resource) bool {
	id, _ := r.Info.(string)
	return id != ""
}

// live is what there is, beside what there should be.
func (a *application) live(target []*unstructured.Unstructured) (sync.ReconciliationResult, error) {
	live, err := a.cluster.GetManagedLiveObjs(target, managed)
	if err != nil {
		return sync.ReconciliationResult{}, err
	}
	return sync.Reconcile(target, live, a.namespace, a.cluster), nil
}

// sync takes step after step, each from what there is by then.
func (a *application) sync(target []*unstructured.Unstructured) error {
	phase, message, results, started := common.OperationRunning, "", []common.ResourceSyncResult(nil), metav1.Now()
	for !phase.Completed() {
		both, err := a.live(target)
		if err != nil {
			return err
		}
		step, remove, err := sync.NewSyncContext("HEAD", both, a.config, a.config, a.kubectl, a.namespace,
			sync.WithInitialState(phase, message, results, started), sync.WithPrune(true), sync.WithServerSideApplyManager(manager), sync.WithSyncWaveHook(betweenWaves))
		if err != nil {
			return err
		}
		step.Sync()
		phase, message, results = step.GetState()
		remove()
		time.Sleep(200 * time.Millisecond)
	}
	for _, r := range results {
		fmt.Printf("%s %s/%s %s %s: %q\n", r.SyncPhase, r.ResourceKey.Kind, r.ResourceKey.Name, r.Status, r.HookPhase, r.Message)
	}
	if !phase.Successful() {
		return fmt.Errorf("%s: %s", phase, message)
	}
	return nil
}

// betweenWaves waits as long as Argo CD does, so that others see what was applied before it is asked whether that is healthy.
func betweenWaves(_ common.SyncPhase, _ int, last bool) error {
	if !last {
		time.Sleep(2 * time.Second)
	}
	return nil
}

// diff compares by dry runs of the server's.
func (a *application) diff(target []*unstructured.Unstructured) error {
	both, err := a.live(target)
	if err != nil {
		return err
	}
	result, err := diff.DiffArray(both.Target, both.Live, diff.WithServerSideDiff(true), diff.WithServerSideDryRunner(diff.NewK8sServerSideDryRunner(a.applier)),
		diff.WithGVKParser(a.cluster.GetGVKParser()), diff.WithManager(manager))
	if err != nil {
		return err
	}
	var names []string
	for i, d := range result.Diffs {
		o := both.Target[i]
		if o == nil { // it is too much
			o, d.Modified = both.Live[i], true
		}
		if d.Modified && !hook.IsHook(o) {
			names = append(names, o.GetKind()+"/"+o.GetName())
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Println(name)
	}
	return nil
}
