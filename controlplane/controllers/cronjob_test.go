package controllers_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func testCronJob(t *testing.T, c *cluster) {
	ns := c.namespace(t, "cronjob")
	api := c.client.BatchV1().CronJobs(ns)
	cron := func(name, ends string, policy batchv1.ConcurrencyPolicy) {
		t.Helper()
		template := podTemplate(map[string]string{outcome: ends})
		template.Spec.RestartPolicy = corev1.RestartPolicyNever
		made, err := api.Create(t.Context(), &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: batchv1.CronJobSpec{
			Schedule: "0 0 1 1 *", ConcurrencyPolicy: policy, JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"cron": name}}, Spec: batchv1.JobSpec{Template: template}},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.late(made)
	}
	cron("done", "succeed", batchv1.AllowConcurrent)
	c.eventually("the Job's success", func() error {
		got, err := api.Get(t.Context(), "done", metav1.GetOptions{})
		if err == nil && (got.Status.LastSuccessfulTime == nil || len(got.Status.Active) > 0 || time.Since(got.Status.LastScheduleTime.Time) > 367*24*time.Hour) {
			err = fmt.Errorf("status %+v", got.Status)
		}
		return err
	})
	jobs, err := c.client.BatchV1().Jobs(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "cron=done"})
	if err != nil || len(jobs.Items) != 1 || jobs.Items[0].Annotations[batchv1.CronJobScheduledTimestampAnnotation] == "" {
		t.Errorf("%d Jobs, %v", len(jobs.Items), err)
	}
	// One that runs on is replaced, or kept.
	for policy, replaced := range map[batchv1.ConcurrencyPolicy]bool{batchv1.ReplaceConcurrent: true, batchv1.ForbidConcurrent: false} {
		name := strings.ToLower(string(policy))
		cron(name, "never", policy)
		var first types.UID
		active := func(what string, check func(batchv1.CronJobStatus) bool) {
			t.Helper()
			c.eventually(what, func() error {
				got, err := api.Get(t.Context(), name, metav1.GetOptions{})
				if err == nil && !check(got.Status) {
					err = fmt.Errorf("status %+v", got.Status)
				}
				return err
			})
		}
		active("a running Job of "+name, func(s batchv1.CronJobStatus) bool {
			if len(s.Active) == 1 {
				first = s.Active[0].UID
			}
			return len(s.Active) == 1
		})
		got, err := api.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// Another time has come: by another schedule, as this one's Job is made for one.
		got.Spec.Schedule = "30 12 2 1 *"
		if got, err = api.Update(t.Context(), got, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.late(got)
		if replaced {
			active("the Job replaced", func(s batchv1.CronJobStatus) bool { return len(s.Active) == 1 && s.Active[0].UID != first })
			continue
		}
		c.eventually("an Event that says why not", func() error {
			list, err := c.client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=JobAlreadyActive"})
			if err == nil && len(list.Items) == 0 {
				err = fmt.Errorf("no Events")
			}
			return err
		})
		active("the first Job alone", func(s batchv1.CronJobStatus) bool { return len(s.Active) == 1 && s.Active[0].UID == first })
	}
}

// late makes a CronJob believe that it ran more than a year ago.
func (c *cluster) late(cron *batchv1.CronJob) {
	c.Helper()
	long := metav1.NewTime(time.Now().Add(-400 * 24 * time.Hour))
	c.eventually("status of CronJob "+cron.Name, func() error {
		got, err := c.client.BatchV1().CronJobs(cron.Namespace).Get(c.Context(), cron.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		got.Status.LastScheduleTime = &long
		_, err = c.client.BatchV1().CronJobs(cron.Namespace).UpdateStatus(c.Context(), got, metav1.UpdateOptions{})
		return err
	})
}
