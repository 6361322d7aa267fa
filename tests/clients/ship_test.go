package clients

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/conversion"
)

// Ship is the operator's kind, as it is stored (v1).
type Ship struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ShipSpec   `json:"spec"`
	Status            ShipStatus `json:"status,omitempty"`
}

type ShipSpec struct {
	Captain string `json:"captain,omitempty"`
	Crew    int    `json:"crew,omitempty"`
}

type ShipStatus struct {
	Ready bool `json:"ready,omitempty"`
}

// Hub implements conversion.Hub.
func (*Ship) Hub() {}

// DeepCopyObject implements runtime.Object.
func (s *Ship) DeepCopyObject() runtime.Object {
	out := *s
	s.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

type ShipList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Ship `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (l *ShipList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]Ship, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*Ship)
	}
	return &out
}

// OldShip is the same in its old spelling (v1alpha1): the captain stands among the crew, as the first.
type OldShip struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              OldShipSpec `json:"spec"`
	Status            ShipStatus  `json:"status,omitempty"`
}

type OldShipSpec struct {
	Crew string `json:"crew,omitempty"` // names, a comma between
}

// DeepCopyObject implements runtime.Object.
func (s *OldShip) DeepCopyObject() runtime.Object {
	out := *s
	s.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// ConvertTo implements conversion.Convertible.
func (s *OldShip) ConvertTo(hub conversion.Hub) error {
	names := strings.Split(s.Spec.Crew, ",")
	to := hub.(*Ship)
	to.ObjectMeta, to.Status, to.Spec = s.ObjectMeta, s.Status, ShipSpec{Captain: names[0], Crew: len(names)}
	return nil
}

// ConvertFrom implements conversion.Convertible.
func (s *OldShip) ConvertFrom(hub conversion.Hub) error {
	from := hub.(*Ship)
	s.ObjectMeta, s.Status = from.ObjectMeta, from.Status
	s.Spec.Crew = from.Spec.Captain + strings.Repeat(",a sailor", max(0, from.Spec.Crew-1))
	return nil
}

var (
	shipVersion    = schema.GroupVersion{Group: "fleet.example.org", Version: "v1"}
	oldShipVersion = schema.GroupVersion{Group: "fleet.example.org", Version: "v1alpha1"}
)

func addShips(s *runtime.Scheme) {
	s.AddKnownTypes(shipVersion, &Ship{}, &ShipList{})
	s.AddKnownTypeWithName(oldShipVersion.WithKind("Ship"), &OldShip{})
	metav1.AddToGroupVersion(s, shipVersion)
	metav1.AddToGroupVersion(s, oldShipVersion)
}
