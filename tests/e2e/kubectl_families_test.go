package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kubectlStep is a command and what it is to print; no argument has a space. A step that begins with a ! is to fail.
type kubectlStep struct{ command, want string }

// kubectlFamilies are the families of kubectl's commands that TestKubectl does not go into, each in the order of its steps. They meet in one
// namespace: what one makes, later ones use.
var kubectlFamilies = []struct {
	name  string
	steps []kubectlStep
}{
	{"create", []kubectlStep{
		{"create deployment web --image=strake.io/busybox:1 --replicas=1 -- sleep 100000", "deployment.apps/web created"},
		{"create configmap conf --from-literal=a=1 --from-literal=b=2", "configmap/conf created"},
		{"create secret generic key --from-literal=k=v", "secret/key created"},
		{"create secret docker-registry pull --docker-server=r.example.org --docker-username=u --docker-password=p", "secret/pull created"},
		{"create secret tls tls --cert=testdata-cert --key=testdata-key", "secret/tls created"},
		{"create serviceaccount robot", "serviceaccount/robot created"},
		{"create token robot --duration=10m", "eyJ"},
		{"create role reader --verb=get,list --resource=pods,configmaps", "role.rbac.authorization.k8s.io/reader created"},
		{"create rolebinding readers --role=reader --serviceaccount=NS:robot", "rolebinding.rbac.authorization.k8s.io/readers created"},
		{"create clusterrole e2e-NS --verb=get --non-resource-url=/e2e", "clusterrole.rbac.authorization.k8s.io/e2e-NS created"},
		{"create clusterrolebinding e2e-NS --clusterrole=e2e-NS --user=ann", "clusterrolebinding.rbac.authorization.k8s.io/e2e-NS created"},
		{"create quota bound --hard=configmaps=100", "resourcequota/bound created"},
		{"create poddisruptionbudget pdb --selector=app=none --min-available=1", "poddisruptionbudget.policy/pdb created"},
		{"create priorityclass e2e-NS --value=7", "priorityclass.scheduling.k8s.io/e2e-NS created"},
		{"create ingress site --class=none --rule=example.org/=web:80", "ingress.networking.k8s.io/site created"},
		{"create service clusterip plain --tcp=80:8080", "service/plain created"},
		{"create service nodeport outside --tcp=80:8080", "service/outside created"},
		{"create service externalname away --external-name=example.org", "service/away created"},
		{"create cronjob tick --image=strake.io/busybox:1 --schedule=0_0_1_1_* -- true", "cronjob.batch/tick created"},
		{"create job once --from=cronjob/tick", "job.batch/once created"},
		{"! create configmap conf", "already exists"},
		{"! create role wild --verb=fly --resource=unicorns", "the server doesn't have a resource type"},
	}},
	{"wait", []kubectlStep{
		{"wait --for=condition=Available deployment/web --timeout=90s", "condition met"},
		{"wait --for=condition=Complete job/once --timeout=90s", "condition met"},
		{"wait --for=jsonpath={.data.a}=1 configmap/conf --timeout=5s", "condition met"},
		{"! wait --for=condition=Failed job/once --timeout=1s", "timed out"},
	}},
	{"label, annotate", []kubectlStep{
		{"label configmap conf tier=back", "labeled"},
		{"! label configmap conf tier=front", "--overwrite is false"},
		{"label configmap conf tier=front --overwrite", "labeled"},
		{"get configmaps -l tier=front -o name", "configmap/conf"},
		{"get configmaps -L tier conf", "front"},
		{"label configmap conf tier-", "unlabeled"},
		{"annotate configmap conf note=x", "annotated"},
		{"annotate configmaps --all note=y --overwrite", "configmap/conf annotated"},
		{"get configmap conf -o jsonpath={.metadata.annotations.note}", "y"},
	}},
	{"patch, replace, edit", []kubectlStep{
		{`patch configmap conf -p {"data":{"a":"3"}}`, "patched"},
		{`patch configmap conf --type=json -p [{"op":"test","path":"/data/a","value":"3"},{"op":"remove","path":"/data/b"}]`, "patched"},
		{`! patch configmap conf --type=json -p [{"op":"test","path":"/data/a","value":"4"}]`, "the server rejected our request"},
		{`patch deployment web --type=merge -p {"spec":{"template":{"metadata":{"labels":{"x":"y"}}}}}`, "patched"},
		{`patch deployment web --subresource=scale --type=merge -p {"spec":{"replicas":2}}`, "patched"},
		{"get deployment web -o jsonpath={.spec.replicas}", "2"},
		{"replace -f conf.yaml", "configmap/conf replaced"},
		{"get configmap conf -o jsonpath={.data}", `{"from":"file"}`},
		{"replace --force -f conf.yaml", "configmap/conf replaced"},
		{"edit configmap conf", "configmap/conf edited"},
		{"get configmap conf -o jsonpath={.data.from}", "editor"},
		{"apply view-last-applied configmap conf", ""},
	}},
	{"apply", []kubectlStep{
		{"apply -k kustom", "configmap/made-"},
		{"apply -f conf.yaml --prune -l app=pruned --prune-allowlist=core/v1/ConfigMap", ""},
		{"apply set-last-applied -f conf.yaml --create-annotation", "configmap/conf"},
		{"diff -f conf.yaml", ""},
		{"get -k kustom -o name", "configmap/made-"},
	}},
	{"set", []kubectlStep{
		{"set env deployment/web MODE=test", "env updated"},
		{"set env deployment/web --list", "MODE=test"},
		{"set resources deployment/web --requests=cpu=1m,memory=4Mi", "resource requirements updated"},
		{"set serviceaccount deployment/web robot", "serviceaccount updated"},
		{"set selector service/plain app=web", "selector updated"},
		{"set subject rolebinding/readers --user=bob", "subjects updated"},
		{"set image deployment/web busybox=strake.io/busybox:1", ""},
	}},
	{"scale, expose, autoscale, rollout", []kubectlStep{
		{"scale deployment/web --replicas=1", "scaled"},
		{"! scale deployment/web --current-replicas=7 --replicas=3", "Expected replicas to be 7"},
		{"expose deployment web --port=80 --target-port=8080", "service/web exposed"},
		{"autoscale deployment web --min=1 --max=2 --cpu-percent=80", "autoscaled"},
		{"rollout pause deployment/web", "paused"},
		{"rollout resume deployment/web", "resumed"},
		{"rollout restart deployment/web", "restarted"},
		{"rollout status deployment/web --timeout=90s", "successfully rolled out"},
		{"rollout history deployment/web", "REVISION"},
	}},
	{"run, attach, debug", []kubectlStep{
		{"run once-more --image=strake.io/busybox:1 --restart=Never --rm -i --quiet -- cat", "from the terminal"}, // what is written before kubectl attaches is lost, as with the reference
		{"run target --image=strake.io/busybox:1 --restart=Never -- sh -c while_true;do_echo_line;sleep_0.1;done", "pod/target created"},
		{"wait --for=condition=Ready pod/target --timeout=60s", "condition met"},
		{"debug target --image=strake.io/busybox:1 --profile=general -c helper -- sleep 100", ""},
		{"wait --for=jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt} pod/target --timeout=60s", "condition met"},
		{"exec target -c helper -- ls /bin/sh", "/bin/sh"},
		{"debug target --copy-to=copy --container=target --profile=general -- sleep 100", ""},
		{"wait --for=condition=Ready pod/copy --timeout=60s", "condition met"},
	}},
	{"nodes", []kubectlStep{
		{"cordon NODE", "cordoned"},
		{"get node NODE", "SchedulingDisabled"},
		{"uncordon NODE", "uncordoned"},
		{"taint node NODE e2e=x:PreferNoSchedule", "tainted"},
		{"describe node NODE", "e2e=x:PreferNoSchedule"},
		{"taint node NODE e2e-", "untainted"},
		{"run spare --image=strake.io/busybox:1 --restart=Never -- sleep 1000", "pod/spare created"},
		{"drain NODE --pod-selector=run=spare --force --ignore-daemonsets --delete-emptydir-data --grace-period=1 --timeout=60s", "drained"},
		{"uncordon NODE", "uncordoned"},
		{"! get pod spare", "not found"},
		{"! top nodes", "Metrics API not available"},
	}},
	{"certificate", []kubectlStep{
		{"create -f csr.yaml", "created"},
		{"get csr e2e-NS", "Pending"},
		{"certificate approve e2e-NS", "approved"},
		{"wait --for=jsonpath={.status.certificate} csr/e2e-NS --timeout=120s", "condition met"},
		{"get csr e2e-NS", "Approved,Issued"},
		{"delete csr e2e-NS", "deleted"},
		{"create -f csr.yaml", "created"},
		{"certificate deny e2e-NS", "denied"},
		{"get csr e2e-NS", "Denied"},
		{"delete csr e2e-NS", "deleted"},
	}},
	{"auth", []kubectlStep{
		{"auth whoami", "system:masters"},
		{"auth whoami --as=ann --as-group=dev", "dev"},
		{"auth can-i create pods", "yes"},
		{"! auth can-i create pods --as=bob", "no"},
		{"auth can-i list configmaps --as=bob", "yes"},
		{"auth can-i --list --as=bob", "configmaps"},
		{"auth can-i get /e2e --as=ann", "yes"},
		{"auth reconcile -f role.yaml", "role.rbac.authorization.k8s.io/reader reconciled"},
		{"auth can-i watch configmaps --as=bob", "yes"},
	}},
	{"what the server is", []kubectlStep{
		{"api-resources --api-group=apps -o wide", "DaemonSet"},
		{"api-resources --namespaced=false -o name", "nodes"},
		{"api-versions", "resource.k8s.io/v1"},
		{"explain deployment.spec.strategy --recursive", "maxSurge"},
		{"explain hpa.spec --api-version=autoscaling/v2", "metrics"},
		{"explain crd.spec.versions --output=plaintext-openapiv2", "storage"},
		{"cluster-info", "control plane"},
		{"version -o json", "serverVersion"},
		{"get --raw /openapi/v3", "apis/apps/v1"},
		{"get all", "deployment.apps/web"},
		{"get events --sort-by=.lastTimestamp", "REASON"},
		{"events --types=Normal", "REASON"},
		{"get configmaps --chunk-size=1 -o name", "configmap/conf"},
		{"get pods --server-print=false", "NAME"},
		{"get deployment web -o custom-columns=N:.metadata.name,R:.spec.replicas", "web"},
		{"get configmap conf -o yaml --show-managed-fields", "manager: kubectl-"},
	}},
	{"delete", []kubectlStep{
		{"delete deployment web --cascade=orphan", "deleted"},
		{"get replicasets -l app=web -o name", "replicaset.apps/web"},
		{"delete replicasets -l app=web --cascade=background", "deleted"},
		{"delete cronjob tick --cascade=foreground --timeout=60s", "deleted"},
		{"! get job once", "not found"},
		{"delete pods --all --grace-period=0 --force", "force"},
		{"delete clusterrolebinding/e2e-NS clusterrole/e2e-NS priorityclass/e2e-NS", "deleted"},
		{"delete configmaps --all", "deleted"},
		{"delete configmap nobody --ignore-not-found", ""},
		{"! delete configmap nobody", "not found"},
	}},
}

func TestKubectlFamilies(t *testing.T) {
	c := use(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "@NS@", c.namespace)), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf := write("conf.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf, labels: {app: pruned}}\ndata: {from: file}\n")
	role := write("role.yaml", "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader, namespace: @NS@}\nrules: [{apiGroups: [''], resources: [configmaps], verbs: [get, list, watch]}]\n")
	kustom := filepath.Dir(write("kustom/kustomization.yaml", "configMapGenerator: [{name: made, literals: [a=b]}]\n"))
	editor := write("editor", "#!/bin/sh\nsed -i 's/from: file/from: editor/' \"$1\"\n")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ann", Organization: []string{"dev"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})
	csr := write("csr.yaml", "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: e2e-@NS@}\nspec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], request: "+base64.StdEncoding.EncodeToString(text)+"}\n")
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), SerialNumber: key.N}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certFile := write("tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	keyFile := write("tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	names := strings.NewReplacer("NS", c.namespace, "NODE", nodeName, "conf.yaml", conf, "role.yaml", role, "csr.yaml", csr, "kustom", kustom, "testdata-cert", certFile, "testdata-key", keyFile)
	for _, family := range kubectlFamilies {
		t.Run(family.name, func(t *testing.T) {
			c := c.in(t)
			for _, step := range family.steps {
				line, fails := strings.CutPrefix(step.command, "! ")
				args := strings.Fields(names.Replace(line))
				for i, a := range args { // blanks within an argument
					if strings.Contains(line, "_*") || strings.Contains(a, "while_") {
						args[i] = strings.ReplaceAll(a, "_", " ")
					}
				}
				cmd := c.kubectlCommand(args...)
				cmd.Env = append(os.Environ(), "KUBE_EDITOR="+editor)
				cmd.Stdin = strings.NewReader("from the terminal\n")
				out, err := cmd.CombinedOutput()
				if (err != nil) != fails || !strings.Contains(string(out), names.Replace(step.want)) {
					t.Errorf("kubectl %s: %v, want %q\n%s", line, err, step.want, out)
				}
			}
		})
	}
}
