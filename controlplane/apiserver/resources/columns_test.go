package resources

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// referenceColumns are the tables of kube-apiserver, with those columns in brackets that are for -o wide. Kinds of which it is not known are left out.
const referenceColumns = `
pods: Name|Ready|Status|Restarts|Age|[IP]|[Node]|[Nominated Node]|[Readiness Gates]
podtemplates: Name|Containers|Images|Pod Labels
poddisruptionbudgets: Name|Min Available|Max Unavailable|Allowed Disruptions|Age
replicationcontrollers: Name|Desired|Current|Ready|Age|[Containers]|[Images]|[Selector]
replicasets: Name|Desired|Current|Ready|Age|[Containers]|[Images]|[Selector]
daemonsets: Name|Desired|Current|Ready|Up-to-date|Available|Node Selector|Age|[Containers]|[Images]|[Selector]
jobs: Name|Status|Completions|Duration|Age|[Containers]|[Images]|[Selector]
cronjobs: Name|Schedule|Timezone|Suspend|Active|Last Schedule|Age|[Containers]|[Images]|[Selector]
services: Name|Type|Cluster-IP|External-IP|Port(s)|Age|[Selector]
ingresses: Name|Class|Hosts|Address|Ports|Age
ingressclasses: Name|Controller|Parameters|Age
statefulsets: Name|Ready|Age|[Containers]|[Images]
endpoints: Name|Endpoints|Age
nodes: Name|Status|Roles|Age|Version|[Internal-IP]|[External-IP]|[OS-Image]|[Kernel-Version]|[Container-Runtime]
events: Last Seen|Type|Reason|Object|[Subobject]|[Source]|Message|[First Seen]|[Count]|[Name]
namespaces: Name|Status|Age
secrets: Name|Type|Data|Age
serviceaccounts: Name|Secrets|Age
persistentvolumes: Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|[VolumeMode]
persistentvolumeclaims: Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|[VolumeMode]
deployments: Name|Ready|Up-to-date|Available|Age|[Containers]|[Images]|[Selector]
horizontalpodautoscalers: Name|Reference|Targets|MinPods|MaxPods|Replicas|Age
configmaps: Name|Data|Age
networkpolicies: Name|Pod-Selector|Age
rolebindings: Name|Role|Age|[Users]|[Groups]|[ServiceAccounts]
clusterrolebindings: Name|Role|Age|[Users]|[Groups]|[ServiceAccounts]
roles: Name|Created At
clusterroles: Name|Created At
limitranges: Name|Created At
certificatesigningrequests: Name|Age|SignerName|Requestor|RequestedDuration|Condition
clustertrustbundles: Name|SignerName
leases: Name|Holder|Age
storageclasses: Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age
volumeattributesclasses: Name|DriverName|Age
controllerrevisions: Name|Controller|Revision|Age
resourcequotas: Name|Request|Limit|Age
priorityclasses: Name|Value|Global-Default|Age|PreemptionPolicy
runtimeclasses: Name|Handler|Age
volumeattachments: Name|Attacher|PV|Node|Attached|Age
endpointslices: Name|AddressType|Ports|Endpoints|Age
csinodes: Name|Drivers|Age
csidrivers: Name|AttachRequired|PodInfoOnMount|StorageCapacity|TokenRequests|RequiresRepublish|Modes|Age
csistoragecapacities: Name|StorageClassName|Capacity
mutatingwebhookconfigurations: Name|Webhooks|Age
validatingwebhookconfigurations: Name|Webhooks|Age
validatingadmissionpolicies: Name|Validations|ParamKind|Age
validatingadmissionpolicybindings: Name|PolicyName|ParamRef|Age
mutatingadmissionpolicies: Name|Mutations|ParamKind|Age
mutatingadmissionpolicybindings: Name|PolicyName|ParamRef|Age
flowschemas: Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL
prioritylevelconfigurations: Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age
deviceclasses: Name|Age
resourceclaims: Name|State|Age
resourceclaimtemplates: Name|Age
resourceslices: Name|Node|Driver|Pool|Age
servicecidrs: Name|CIDRs|Age
`

// printed is an object's row, by the names of its columns, and those in their order.
func printed(t *testing.T, d *descriptor.Resource, obj runtime.Object) (map[string]string, string) {
	t.Helper()
	table, err := descriptor.Table(d.Columns...).ConvertToTable(t.Context(), obj, nil)
	if err != nil || len(table.Rows) != 1 || len(table.Rows[0].Cells) != len(table.ColumnDefinitions) {
		t.Fatalf("%s: %v, %+v", d.Plural, err, table)
	}
	cells, names := map[string]string{}, []string{}
	for i, c := range table.ColumnDefinitions {
		cells[c.Name] = fmt.Sprint(table.Rows[0].Cells[i])
		if c.Priority > 0 {
			c.Name = "[" + c.Name + "]"
		}
		names = append(names, c.Name)
	}
	return cells, strings.Join(names, "|")
}

func TestColumns(t *testing.T) {
	want := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(referenceColumns), "\n") {
		name, columns, _ := strings.Cut(line, ": ")
		want[name] = columns
	}
	for _, d := range All() {
		columns, ok := want[d.Plural]
		if !ok {
			continue
		}
		delete(want, d.Plural)
		if _, got := printed(t, d, d.New()); got != columns {
			t.Errorf("%s:\n%s\nwant\n%s", d.Plural, got, columns)
		}
	}
	for name := range want {
		t.Errorf("there are no %s", name)
	}
}

// TestSecretsOfAccounts: they are kept, as names.
func TestSecretsOfAccounts(t *testing.T) {
	d, s := serviceAccounts(), &corev1.ServiceAccount{Secrets: []corev1.ObjectReference{{Kind: "Secret", Namespace: "other", Name: "a"}}}
	d.PrepareCreate(t.Context(), s)
	if len(s.Secrets) != 1 || s.Secrets[0] != (corev1.ObjectReference{Name: "a"}) {
		t.Errorf("made with %+v", s.Secrets)
	}
	changed := s.DeepCopy()
	changed.Secrets = append(changed.Secrets, corev1.ObjectReference{Namespace: "other", Name: "b"})
	d.PrepareUpdate(t.Context(), changed, s)
	if len(changed.Secrets) != 2 || changed.Secrets[1] != (corev1.ObjectReference{Name: "b"}) {
		t.Errorf("changed to %+v", changed.Secrets)
	}
}

func TestCells(t *testing.T) {
	ago := func(d time.Duration) metav1.Time { return metav1.NewTime(time.Now().Add(-d)) }
	port, name, group := int32(80), "web", "example.org"
	address := func(ips ...string) (out []corev1.EndpointAddress) {
		for _, ip := range ips {
			out = append(out, corev1.EndpointAddress{IP: ip})
		}
		return out
	}
	status := func(name string, restarts int32, end *corev1.ContainerStateTerminated) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, RestartCount: restarts, State: corev1.ContainerState{Terminated: end}}
	}
	begins := &corev1.Pod{
		Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "one"}, {Name: "two"}}, Containers: []corev1.Container{{Name: "main"}}},
		Status: corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{
			status("one", 3, &corev1.ContainerStateTerminated{}), status("two", 2, &corev1.ContainerStateTerminated{ExitCode: 7}),
		}},
	}
	runs := begins.DeepCopy()
	runs.Status.InitContainerStatuses[1].State.Terminated.ExitCode = 0
	runs.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", RestartCount: 1, Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	recorded := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "p"}, Count: 4, FirstTimestamp: ago(time.Hour), LastTimestamp: ago(20 * time.Minute),
		Source: corev1.EventSource{Component: "kubelet", Host: "n1"}, ReportingController: "kubelet", ReportingInstance: "n1",
	}
	series := &corev1.Event{
		InvolvedObject: corev1.ObjectReference{Kind: "Cluster"}, EventTime: metav1.NewMicroTime(ago(4 * time.Hour).Time), ReportingController: "scheduler",
		Series: &corev1.EventSeries{Count: 9, LastObservedTime: metav1.NewMicroTime(ago(30 * time.Minute).Time)},
	}
	begun, three := ago(5*time.Minute), int32(3)
	job := func(succeeded int32, t batchv1.JobConditionType, status corev1.ConditionStatus) *batchv1.Job {
		j := &batchv1.Job{Status: batchv1.JobStatus{StartTime: &begun, Succeeded: succeeded, Conditions: []batchv1.JobCondition{{Type: t, Status: status}}}}
		if succeeded > 0 {
			j.Status.StartTime, j.Status.CompletionTime = new(ago(time.Hour)), new(ago(55*time.Minute))
		}
		return j
	}
	for _, c := range []struct {
		kind  string
		obj   runtime.Object
		cells map[string]string
	}{
		{"pods", begins, map[string]string{"Status": "Init:ExitCode:7", "Restarts": "5", "Ready": "0/1"}},
		{"pods", runs, map[string]string{"Restarts": "1", "Ready": "1/1"}},
		{"events", recorded, map[string]string{"Last Seen": "20m", "First Seen": "60m", "Object": "pod/p", "Source": "kubelet, n1", "Count": "4", "Name": "e"}},
		{"events", series, map[string]string{"Last Seen": "30m", "First Seen": "4h", "Object": "cluster", "Source": "scheduler", "Count": "9"}},
		{"jobs", job(0, batchv1.JobComplete, corev1.ConditionFalse), map[string]string{"Status": "Running", "Completions": "0/1", "Duration": "5m"}},
		{"jobs", job(1, batchv1.JobComplete, corev1.ConditionTrue), map[string]string{"Status": "Complete", "Completions": "1/1", "Duration": "5m"}},
		{"jobs", job(0, batchv1.JobFailed, corev1.ConditionTrue), map[string]string{"Status": "Failed"}},
		{"jobs", job(0, batchv1.JobSuspended, corev1.ConditionTrue), map[string]string{"Status": "Suspended"}},
		{"jobs", job(0, batchv1.JobFailureTarget, corev1.ConditionTrue), map[string]string{"Status": "FailureTarget"}},
		{"jobs", job(0, batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue), map[string]string{"Status": "SuccessCriteriaMet"}},
		{"jobs", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &begun}, Spec: batchv1.JobSpec{Parallelism: &three}}, map[string]string{"Status": "Terminating", "Completions": "0/1 of 3", "Duration": ""}},
		{"jobs", &batchv1.Job{Spec: batchv1.JobSpec{Parallelism: &three, Completions: &three}, Status: batchv1.JobStatus{Succeeded: 2}}, map[string]string{"Completions": "2/3"}},
		{"endpoints", &corev1.Endpoints{}, map[string]string{"Endpoints": "<none>"}},
		{"endpoints", &corev1.Endpoints{Subsets: []corev1.EndpointSubset{{Addresses: address("10.0.0.1", "fd00::1"), Ports: []corev1.EndpointPort{{Port: 80}, {Port: 81}}}}}, map[string]string{"Endpoints": "10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 1 more..."}},
		{"endpoints", &corev1.Endpoints{Subsets: []corev1.EndpointSubset{{Addresses: address("10.0.0.1", "10.0.0.2")}}}, map[string]string{"Endpoints": "10.0.0.1,10.0.0.2"}},
		{"endpointslices", &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Port: &port}, {Name: &name}, {}, {Port: &port}}}, map[string]string{"Ports": "80,web,* + 1 more...", "Endpoints": "<unset>"}},
		{"ingresses", &networkingv1.Ingress{
			Spec:   networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{Host: "a"}, {Host: "b"}, {Host: "c"}, {Host: "d"}, {Host: "e"}}},
			Status: networkingv1.IngressStatus{LoadBalancer: networkingv1.IngressLoadBalancerStatus{Ingress: []networkingv1.IngressLoadBalancerIngress{{Hostname: "z.example"}, {IP: "192.0.2.1", Hostname: "not.shown"}, {IP: "192.0.2.1"}}}},
		}, map[string]string{"Hosts": "a,b,c + 2 more...", "Address": "192.0.2.1,z.example"}},
		{"ingresses", &networkingv1.Ingress{}, map[string]string{"Hosts": "*", "Address": ""}},
		{"ingressclasses", &networkingv1.IngressClass{}, map[string]string{"Parameters": "<none>"}},
		{"ingressclasses", &networkingv1.IngressClass{Spec: networkingv1.IngressClassSpec{Parameters: &networkingv1.IngressClassParametersReference{APIGroup: &group, Kind: "Settings", Name: "s"}}}, map[string]string{"Parameters": "Settings.example.org/s"}},
		{"storageclasses", &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local"}}, map[string]string{"Name": "local"}},
		{"storageclasses", &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}}, map[string]string{"Name": "local (default)"}},
		{"serviceaccounts", &corev1.ServiceAccount{Secrets: []corev1.ObjectReference{{Name: "a"}}}, map[string]string{"Secrets": "1"}},
		{"services", &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{"192.0.2.9"}}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}, {IP: "192.0.2.1"}}}}}, map[string]string{"External-IP": "192.0.2.1,192.0.2.2,192.0.2.9"}},
	} {
		for _, d := range All() {
			if d.Plural != c.kind {
				continue
			}
			got, _ := printed(t, d, c.obj)
			for column, want := range c.cells {
				if got[column] != want {
					t.Errorf("%s, %s: %q, want %q", c.kind, column, got[column], want)
				}
			}
		}
	}
}
